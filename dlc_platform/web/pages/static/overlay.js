// The frame that is shown, with keypoints and skeleton on it. Pixel 0 has its middle at 0, so a picture begins at -0.5.

const RIM = "#101010";

export class Overlay {
  constructor(canvas, about) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.about = about;
    this.hidden = new Set();
    this.cutoff = about.cutoff;
    this.limbs = true;
    this.trail = false;
  }

  // Where a point of the video's picture is on the canvas, in its pixels.
  place(x, y) {
    return [((x + 0.5) * this.canvas.width) / this.about.width, ((y + 0.5) * this.canvas.height) / this.about.height];
  }

  // False while the poses of this frame are not there: then the frame alone is shown.
  draw(picture, frame, poses, ghost = null) {
    const box = this.canvas.getBoundingClientRect();
    const sharp = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * sharp);
    this.canvas.height = Math.round(box.height * sharp);
    const context = this.context;
    context.drawImage(picture, 0, 0, this.canvas.width, this.canvas.height);
    this.canvas.dataset.frame = "";
    if (poses.at(frame, 0) === null) return false;
    const radius = Math.max(3, this.canvas.width / 220);
    if (ghost) this.#figure(ghost, frame, radius, 0.45, true);
    if (this.trail) this.#trails(poses, frame, radius);
    this.#figure(poses, frame, radius, 1, false);
    this.canvas.dataset.frame = String(frame);
    return true;
  }

  #figure(poses, frame, radius, alpha, hollow) {
    const context = this.context;
    const points = this.about.keypoints.map((_, number) => {
      const values = this.hidden.has(number) ? null : poses.at(frame, number);
      return values === null || Number.isNaN(values[0]) || !(values[2] >= this.cutoff) ? null : this.place(values[0], values[1]);
    });
    context.globalAlpha = alpha;
    if (this.limbs) {
      for (const [one, other] of this.about.limbs) {
        if (!points[one] || !points[other]) continue;
        for (const [colour, width] of [[RIM, radius * 0.9], ["#ffffff", radius * 0.5]]) {
          context.strokeStyle = colour;
          context.lineWidth = width;
          context.beginPath();
          context.moveTo(...points[one]);
          context.lineTo(...points[other]);
          context.stroke();
        }
      }
    }
    points.forEach((point, number) => {
      if (!point) return;
      context.beginPath();
      context.arc(point[0], point[1], radius, 0, 2 * Math.PI);
      context.lineWidth = Math.max(1, radius / 3);
      if (hollow) {
        context.strokeStyle = this.about.keypoints[number].colour;
        context.stroke();
      } else {
        context.fillStyle = this.about.keypoints[number].colour;
        context.strokeStyle = RIM;
        context.fill();
        context.stroke();
      }
    });
    context.globalAlpha = 1;
  }

  #trails(poses, frame, radius) {
    const context = this.context;
    context.lineWidth = Math.max(1, radius / 2.5);
    this.about.keypoints.forEach((keypoint, number) => {
      if (this.hidden.has(number)) return;
      context.strokeStyle = keypoint.colour;
      context.globalAlpha = 0.6;
      context.beginPath();
      let open = false;
      for (let past = Math.max(0, frame - 50); past <= frame; past += 1) {
        const values = poses.at(past, number);
        if (values === null || Number.isNaN(values[0]) || !(values[2] >= this.cutoff)) {
          open = false;
          continue;
        }
        const point = this.place(values[0], values[1]);
        if (open) context.lineTo(...point);
        else context.moveTo(...point);
        open = true;
      }
      context.stroke();
    });
    context.globalAlpha = 1;
  }
}
