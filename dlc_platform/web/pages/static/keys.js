// Keys that work on every page, and forms that send themselves when a choice is made.

const KEYS = [
  ["/", "search sessions"],
  ["n  p", "the next and the previous session"],
  ["space", "play or stop"],
  ["← →", "one frame back or on, with shift ten"],
  ["[ ]", "the moment before and after"],
  ["?", "these keys"],
];

function showKeys() {
  let dialog = document.querySelector("dialog.keys");
  if (!dialog) {
    dialog = document.createElement("dialog");
    dialog.className = "keys";
    const list = document.createElement("dl");
    for (const [key, says] of KEYS) {
      const term = document.createElement("dt");
      const what = document.createElement("dd");
      term.textContent = key;
      what.textContent = says;
      list.append(term, what);
    }
    const close = document.createElement("button");
    close.textContent = "Close";
    close.addEventListener("click", () => dialog.close());
    dialog.append(list, close);
    document.body.append(dialog);
  }
  dialog.showModal();
}

export function isTyping(event) {
  return event.target.closest("input, select, textarea, dialog") !== null || event.ctrlKey || event.metaKey || event.altKey;
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("search").focus();
  } else if (event.key === "?") {
    showKeys();
  } else if (event.key === "n" || event.key === "p") {
    document.querySelector(`[data-go="${event.key}"]`)?.click();
  }
});
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-keys]")) showKeys();
});
