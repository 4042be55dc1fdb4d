// The player of a session: one clock, the frame that the browser shows, and everything else follows it.

import { FrameClock } from "./clock.js";
import { isTyping } from "./keys.js";
import { Lanes, nameOf } from "./lanes.js";
import { Moments } from "./moments.js";
import { Overlay } from "./overlay.js";
import { Plots } from "./plots.js";
import { floats, otherPoses, Poses } from "./poses.js";

// A screen has no more columns.
const FEW_FRAMES = 2000;

class Player {
  constructor(root) {
    this.root = root;
    this.video = root.querySelector("video");
    this.notice = root.querySelector(".notice");
    this.say("Loading the video");
  }

  say(text) {
    this.notice.textContent = text;
  }

  async start() {
    const answer = await fetch(this.root.dataset.player);
    this.about = await answer.json();
    if (!answer.ok) throw new Error(`${this.about.problem}. ${this.about.remedy}`);
    const screen = this.root.querySelector(".screen");
    const ratio = this.about.width / this.about.height;
    screen.style.aspectRatio = String(ratio);
    screen.style.maxWidth = `calc(72vh * ${ratio})`;
    this.overlay = new Overlay(this.root.querySelector("canvas"), this.about);
    this.poses = new Poses(this.about.window, this.about.frames, [...this.about.keypoints.keys()]);
    const times = await floats(this.about.times, Float64Array);
    this.lanes = new Lanes(this.root.querySelector(".lanes"), this.about, (frame) => this.goTo(frame));
    this.plots = new Plots(this.root.querySelector(".plot"), this.about, times, (frame) => this.goTo(frame));
    this.moments = new Moments(document.getElementById("moments"), this.root.querySelector(".lanes"), this.about, (frame) =>
      this.goTo(frame),
    );
    this.#parts();
    this.#controls();
    const overview = this.#overview();
    await Promise.all([this.#video(times), this.poses.ready(this.#linked() ?? 0), overview]);
    this.clock.onFrame((frame) => this.#follow(frame));
    this.say("");
    const linked = this.#linked();
    if (linked !== null) await this.goTo(linked);
    this.#follow(this.clock.frame);
    this.root.dataset.ready = "true";
    this.#moments();
    window.addEventListener("hashchange", () => {
      const frame = this.#linked();
      if (frame !== null && frame !== this.clock.frame) this.goTo(frame);
    });
    new ResizeObserver(() => this.#draw()).observe(screen);
  }

  async #overview() {
    const { frames, steps } = this.about;
    if (frames <= FEW_FRAMES) {
      this.lanes.show(likelihoods(await floats(`${this.about.window}?first=0&last=${frames}`)), frames);
    } else {
      const step = steps.find((own) => frames / own <= FEW_FRAMES) ?? steps.at(-1);
      this.lanes.show(await floats(`${this.about.extremes}?step=${step}`), Math.ceil(frames / step));
    }
    await this.plots.show();
  }

  async #moments() {
    const answer = await fetch(this.about.moments);
    const found = await answer.json();
    if (answer.ok) this.moments.show(found.moments, found.more);
    else document.getElementById("moments").textContent = `${found.problem}. ${found.remedy}.`;
    this.root.dataset.moments = "shown";
  }

  async #video(times) {
    if (this.about.video) {
      this.clock = new FrameClock(this.video, times);
      try {
        await this.clock.start(this.about.video);
        return;
      } catch {
        this.say("This browser cannot play the video itself; a preview is made of it");
      }
    }
    await this.#preview();
    this.clock = new FrameClock(this.video, await floats(this.about.previewTimes, Float64Array));
    await this.clock.start(this.about.previewVideo);
  }

  async #preview() {
    for (;;) {
      const making = await (await fetch(this.about.preview)).json();
      if (making.state === "there") return;
      if (making.state === "failed") throw new Error(making.says);
      const share = making.frames ? Math.floor((100 * making.done) / making.frames) : 0;
      this.say(
        making.state === "waiting"
          ? "A preview of this video will be made, after others"
          : `Making a preview that browsers can play: ${share} %`,
      );
      await new Promise((done) => setTimeout(done, 500));
    }
  }

  #linked() {
    const found = /^#frame=(\d+)$/.exec(window.location.hash);
    return found ? Math.min(Number(found[1]), this.about.frames - 1) : null;
  }

  async goTo(frame) {
    this.video.pause();
    this.poses.ready(Math.max(0, Math.min(frame, this.about.frames - 1))).then(() => this.#draw());
    await this.clock.seek(frame);
    window.history.replaceState(null, "", `#frame=${this.clock.frame}`);
  }

  #follow(frame) {
    this.root.querySelector(".frame").textContent = String(frame);
    this.root.querySelector(".time").textContent = clockOf(this.clock.times[frame]);
    this.root.dataset.frame = String(frame);
    const fetched = Promise.all([this.poses.ready(frame), this.ghost?.ready(frame)]);
    if (!this.#draw()) fetched.then(() => this.#draw());
    this.lanes.mark(frame);
    this.plots.mark(frame);
  }

  #draw() {
    if (!this.clock || this.clock.frame < 0) return false;
    return this.overlay.draw(this.clock.picture, this.clock.frame, this.poses, this.ghost ?? null);
  }

  #parts() {
    const box = this.root.querySelector(".parts");
    this.about.keypoints.forEach((keypoint, number) => {
      const label = document.createElement("label");
      const check = document.createElement("input");
      const swatch = document.createElement("span");
      check.type = "checkbox";
      check.checked = true;
      swatch.className = "swatch";
      swatch.style.background = keypoint.colour;
      label.append(check, swatch, nameOf(keypoint, this.about.keypoints));
      check.addEventListener("change", () => {
        for (const hidden of [this.overlay.hidden, this.plots.hidden]) {
          if (check.checked) hidden.delete(number);
          else hidden.add(number);
        }
        this.#draw();
        this.plots.show();
      });
      box.append(label);
    });
  }

  #controls() {
    const find = (what) => this.root.querySelector(what);
    const play = find('[data-do="play"]');
    const step = (frames) => this.goTo(this.clock.target + frames);
    const toggle = () => (this.video.paused ? this.video.play() : this.video.pause());
    play.addEventListener("click", toggle);
    find('[data-do="back"]').addEventListener("click", () => step(-1));
    find('[data-do="forward"]').addEventListener("click", () => step(1));
    this.video.addEventListener("play", () => (play.textContent = "Stop"));
    this.video.addEventListener("pause", () => {
      play.textContent = "Play";
      if (this.clock?.frame >= 0) window.history.replaceState(null, "", `#frame=${this.clock.frame}`);
    });
    find('[data-set="speed"]').addEventListener("change", (event) => {
      this.video.playbackRate = Number(event.target.value);
    });
    const cutoff = find('[data-set="cutoff"]');
    cutoff.value = String(this.about.cutoff);
    const said = find(".cutoff");
    said.textContent = this.about.cutoff.toFixed(2);
    cutoff.addEventListener("input", () => {
      this.overlay.cutoff = Number(cutoff.value);
      said.textContent = this.overlay.cutoff.toFixed(2);
      this.#draw();
    });
    for (const name of ["trail", "limbs"]) {
      find(`[data-set="${name}"]`).addEventListener("change", (event) => {
        this.overlay[name] = event.target.checked;
        this.#draw();
      });
    }
    find('[data-set="ghost"]')?.addEventListener("change", async (event) => {
      const estimate = event.target.value;
      this.ghost = estimate ? await otherPoses(estimate, this.about) : null;
      await this.ghost?.ready(this.clock.frame);
      this.#draw();
    });
    for (const choice of this.root.querySelectorAll('[name="plotted"]')) {
      choice.addEventListener("change", () => {
        this.plots.plotted = choice.value;
        this.plots.show();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (isTyping(event) || !this.clock) return;
      if (event.key === " " && !event.target.closest("button, a")) toggle();
      else if (event.key === "ArrowLeft") step(event.shiftKey ? -10 : -1);
      else if (event.key === "ArrowRight") step(event.shiftKey ? 10 : 1);
      else if (event.key === "[" || event.key === "]") {
        const moment = this.moments.beside(this.clock.target, event.key === "]");
        if (moment !== null) this.goTo(moment);
      } else return;
      event.preventDefault();
    });
  }
}

// The poses of every frame as extremes over steps of one frame, as far as the lanes use them.
function likelihoods(poses) {
  const extremes = new Float32Array((poses.length / 3) * 8).fill(NaN);
  for (let place = 0; place < poses.length / 3; place += 1) extremes[place * 8 + 4] = poses[place * 3 + 2];
  return extremes;
}

function clockOf(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(3).padStart(6, "0")}`;
}

const root = document.getElementById("player");
if (root) {
  const player = new Player(root);
  player.start().catch((error) => {
    player.say(`The video cannot be shown: ${error.message}`);
    root.dataset.ready = "failed";
  });
}
