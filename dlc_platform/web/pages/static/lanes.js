// One line for each keypoint over the whole file: likelihood as shade, dark where it is low. A click goes there.

const HEIGHT = 14;
const GAP = 2;

export class Lanes {
  constructor(box, about, goTo) {
    this.about = about;
    this.box = box;
    this.canvas = document.createElement("canvas");
    this.cursor = document.createElement("canvas");
    this.cursor.className = "cursor";
    box.append(this.canvas, this.cursor);
    this.values = null;
    for (const canvas of [this.canvas, this.cursor]) {
      canvas.addEventListener("click", (event) => {
        const place = event.offsetX / this.canvas.clientWidth;
        goTo(Math.floor(place * about.frames));
      });
    }
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // extremes: smallest and largest x, y, likelihood and speed over each step, keypoint by keypoint.
  show(extremes, steps) {
    this.values = extremes;
    this.steps = steps;
    this.draw();
  }

  draw() {
    if (!this.values) return;
    const rows = this.about.keypoints.length;
    const width = Math.max(1, this.box.clientWidth);
    const height = rows * (HEIGHT + GAP);
    for (const canvas of [this.canvas, this.cursor]) {
      canvas.width = width;
      canvas.height = height;
      canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d");
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const first = Math.floor((column * this.steps) / width);
        const last = Math.max(first + 1, Math.floor(((column + 1) * this.steps) / width));
        let least = Infinity;
        for (let step = first; step < last; step += 1) {
          const low = this.values[((row * this.steps + step) * 4 + 2) * 2];
          if (low < least) least = low;
        }
        context.fillStyle = Number.isFinite(least) ? shade(least) : "#00000000";
        context.fillRect(column, row * (HEIGHT + GAP), 1, HEIGHT);
      }
      context.font = "11px system-ui";
      context.lineWidth = 3;
      context.strokeStyle = "#ffffffd0";
      context.fillStyle = "#101010";
      const name = nameOf(this.about.keypoints[row], this.about.keypoints);
      context.strokeText(name, 4, row * (HEIGHT + GAP) + 11);
      context.fillText(name, 4, row * (HEIGHT + GAP) + 11);
    }
  }

  mark(frame) {
    const context = this.cursor.getContext("2d");
    context.clearRect(0, 0, this.cursor.width, this.cursor.height);
    context.fillStyle = "#d0006f";
    const place = ((frame + 0.5) / this.about.frames) * this.cursor.width;
    context.fillRect(Math.round(place) - 1, 0, 2, this.cursor.height);
  }
}

export function nameOf(keypoint, keypoints) {
  const several = keypoints.some((other) => other.individual !== keypoint.individual);
  return several ? `${keypoint.individual} ${keypoint.bodypart}` : keypoint.bodypart;
}

function shade(likelihood) {
  const light = Math.min(Math.max(likelihood, 0), 1);
  const mix = (low, high) => Math.round(low + light * (high - low));
  return `rgb(${mix(44, 214)},${mix(34, 226)},${mix(66, 240)})`;
}
