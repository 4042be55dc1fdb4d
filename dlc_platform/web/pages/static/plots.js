// The values of the keypoints over time, on the axis of the lanes: drag to zoom, click to go there, twice for all.
//
// What is on the screen decides how much is fetched: every frame of a short stretch, extremes over steps of a long one.

import { floats } from "./poses.js";
import { nameOf } from "./lanes.js";

const VALUES = ["x", "y", "likelihood", "speed"];
const UNITS = { x: "x (px)", y: "y (px)", likelihood: "likelihood", speed: "speed (px/s)" };
const HEIGHT = 220;

export class Plots {
  constructor(box, about, times, goTo) {
    Object.assign(this, { box, about, times, goTo });
    this.plotted = "likelihood";
    this.hidden = new Set();
    this.range = [0, about.frames];
    this.turn = 0;
    new ResizeObserver(() => this.plot?.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box);
  }

  async show() {
    const turn = ++this.turn;
    const [first, last] = this.range;
    const columns = await this.#columns(first, last);
    // Somebody asked for something else meanwhile.
    if (turn !== this.turn) return;
    const series = [{ label: "s" }];
    const data = [columns.seconds];
    this.about.keypoints.forEach((keypoint, number) => {
      if (this.hidden.has(number)) return;
      series.push({
        label: nameOf(keypoint, this.about.keypoints),
        stroke: keypoint.colour,
        width: 1.2,
        points: { show: false },
        spanGaps: false,
      });
      data.push(columns.values[number]);
    });
    this.plot?.destroy();
    const ink = getComputedStyle(document.body).color;
    this.plot = new uPlot(
      {
        width: this.box.clientWidth,
        height: HEIGHT,
        scales: { x: { time: false } },
        legend: { show: false },
        cursor: { drag: { x: true, y: false, setScale: false } },
        axes: [
          { label: "seconds", stroke: ink, grid: { stroke: "#8884" } },
          { label: UNITS[this.plotted], stroke: ink, grid: { stroke: "#8884" } },
        ],
        series,
        hooks: { setSelect: [(plot) => this.#zoom(plot)], draw: [(plot) => this.#cursor(plot)] },
      },
      data,
      this.box,
    );
    this.plot.over.addEventListener("click", (event) => {
      if (this.zoomed) {
        this.zoomed = false;
        return;
      }
      this.goTo(this.#frameAt(this.plot.posToVal(event.offsetX, "x")));
    });
    this.plot.over.addEventListener("dblclick", () => {
      this.range = [0, this.about.frames];
      this.show();
    });
  }

  mark(frame) {
    this.marked = frame;
    this.plot?.redraw(false);
  }

  #zoom(plot) {
    if (plot.select.width < 5) return;
    this.zoomed = true;
    const from = this.#frameAt(plot.posToVal(plot.select.left, "x"));
    const to = this.#frameAt(plot.posToVal(plot.select.left + plot.select.width, "x"));
    this.range = [from, Math.max(to + 1, from + 10)];
    this.show();
  }

  #cursor(plot) {
    if (this.marked === undefined) return;
    const place = plot.valToPos(this.times[this.marked], "x", true);
    const { left, top, width, height } = plot.bbox;
    if (place < left || place > left + width) return;
    plot.ctx.fillStyle = "#d0006f";
    plot.ctx.fillRect(Math.round(place) - 1, top, 2, height);
  }

  #frameAt(seconds) {
    let low = 0;
    let high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.times[middle] <= seconds) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  async #columns(first, last) {
    const frames = last - first;
    const keypoints = this.about.keypoints.length;
    const step = frames <= 4096 ? 1 : this.about.steps.find((own) => frames / own <= 3000) ?? this.about.steps.at(-1);
    const which = VALUES.indexOf(this.plotted);
    if (step === 1 && this.plotted !== "speed") {
      const values = await floats(`${this.about.window}?first=${first}&last=${last}`);
      return {
        seconds: Array.from(this.times.subarray(first, last)),
        values: Array.from({ length: keypoints }, (_, number) =>
          Array.from({ length: frames }, (_, at) => known(values[(number * frames + at) * 3 + which])),
        ),
      };
    }
    const steps = step === 1 ? this.about.steps[0] : step;
    const values = await floats(`${this.about.extremes}?step=${steps}&first=${first}&last=${last}`);
    const count = Math.ceil(last / steps) - Math.floor(first / steps);
    const seconds = [];
    for (let at = 0; at < count; at += 1) {
      const frame = Math.min((Math.floor(first / steps) + at) * steps, this.times.length - 1);
      const next = Math.min(frame + (steps >> 1), this.times.length - 1);
      seconds.push(this.times[frame], this.times[next] > this.times[frame] ? this.times[next] : this.times[frame] + 1e-6);
    }
    return {
      seconds,
      values: Array.from({ length: keypoints }, (_, number) => {
        const own = [];
        for (let at = 0; at < count; at += 1) {
          const place = ((number * count + at) * VALUES.length + which) * 2;
          own.push(known(values[place]), known(values[place + 1]));
        }
        return own;
      }),
    };
  }
}

function known(value) {
  return Number.isNaN(value) ? null : value;
}
