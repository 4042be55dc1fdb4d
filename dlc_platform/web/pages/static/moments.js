// The moments that the checks point at: marks on the axis of the lanes, and a list beside the video. A click goes there.

const HEIGHT = 12;

export class Moments {
  constructor(list, lane, about, goTo) {
    Object.assign(this, { list, about, goTo });
    this.moments = [];
    this.canvas = document.createElement("canvas");
    this.canvas.className = "marks";
    lane.before(this.canvas);
    this.canvas.addEventListener("click", (event) => {
      const frame = (event.offsetX / this.canvas.clientWidth) * about.frames;
      const near = this.moments.toSorted((one, other) => Math.abs(one.first - frame) - Math.abs(other.first - frame))[0];
      if (near) goTo(near.first);
    });
    new ResizeObserver(() => this.draw()).observe(lane);
  }

  show(moments, more) {
    this.moments = moments;
    this.list.replaceChildren(
      ...moments.map((moment) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        const frames = moment.first === moment.last ? `frame ${moment.first}` : `frames ${moment.first} to ${moment.last}`;
        button.textContent = `${frames}: ${moment.says}`;
        button.addEventListener("click", () => this.goTo(moment.first));
        item.append(button);
        return item;
      }),
    );
    if (!moments.length) this.list.append("None: nothing jumps, and no stretch is unsure.");
    if (more) this.list.append(`${more} more of less weight are not shown.`);
    this.draw();
  }

  draw() {
    const width = Math.max(1, this.canvas.clientWidth);
    this.canvas.width = width;
    this.canvas.height = HEIGHT;
    const context = this.canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--look");
    for (const { first, last } of this.moments) {
      const left = (first / this.about.frames) * width;
      context.fillRect(left, 2, Math.max(2, ((last + 1 - first) / this.about.frames) * width), HEIGHT - 4);
    }
  }

  // The moment after a frame, or before it.
  beside(frame, forward) {
    const own = forward
      ? this.moments.find((moment) => moment.first > frame)
      : this.moments.findLast((moment) => moment.first < frame);
    return own?.first ?? null;
  }
}
