// Which frame of a video the browser shows, and how it is brought to show another one.
//
// A frame is its number in the order of decoding. The table of times says when each is shown; what the browser says it
// presented (`mediaTime`) is looked up in it. The time that the video was asked for is never used: it runs ahead of the
// picture. Files begin at other times than 0 in a player, so the first frame that is presented sets the clocks right.
// The picture is copied in the very callback that says which one it is: the video element itself may be a frame ahead.

const PATIENCE_MS = 4000;

export class FrameClock {
  // times: Float64Array, seconds from the first frame, never decreasing.
  constructor(video, times) {
    this.video = video;
    this.times = times;
    this.offset = null;
    this.frame = -1;
    this.listeners = [];
    this.wanted = null;
    this.picture = document.createElement("canvas");
  }

  // Resolves when the first frame is there.
  start(address) {
    const first = this.#presented();
    this.video.src = address;
    return new Promise((resolve, reject) => {
      this.video.addEventListener("error", () => reject(new Error("the browser cannot play this video")), { once: true });
      first.then((mediaTime) => {
        this.offset = mediaTime - this.times[0];
        this.#tell(0);
        this.#follow();
        resolve();
      });
    });
  }

  onFrame(listener) {
    this.listeners.push(listener);
  }

  // The frame that is shown at a time of the player.
  frameAt(mediaTime) {
    const time = mediaTime - this.offset + 1e-4;
    let low = 0;
    let high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.times[middle] <= time) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Resolves with the frame that is shown in the end: the wanted one, unless another was asked for meanwhile.
  async seek(frame) {
    const last = this.times.length - 1;
    this.wanted = Math.min(Math.max(Math.round(frame), 0), last);
    if (this.seeking) return this.seeking;
    this.seeking = this.#seekOn();
    const shown = await this.seeking;
    return shown;
  }

  async #seekOn() {
    try {
      while (this.wanted !== null && this.wanted !== this.frame) {
        const wanted = this.wanted;
        const end = wanted + 1 < this.times.length ? this.times[wanted + 1] : this.times[wanted] + 0.01;
        const middle = (this.times[wanted] + end) / 2;
        const shown = this.#presented();
        this.video.currentTime = middle + this.offset;
        const mediaTime = await Promise.race([shown, new Promise((done) => setTimeout(() => done(null), PATIENCE_MS))]);
        if (mediaTime !== null) this.#tell(this.frameAt(mediaTime));
        // What cannot be shown is not asked for again.
        if (this.wanted === wanted) break;
      }
      return this.frame;
    } finally {
      this.wanted = null;
      this.seeking = null;
    }
  }

  get target() {
    return this.wanted ?? this.frame;
  }

  #presented() {
    return new Promise((resolve) =>
      this.video.requestVideoFrameCallback((_, about) => {
        this.#copy();
        resolve(about.mediaTime);
      }),
    );
  }

  #follow() {
    this.video.requestVideoFrameCallback((_, about) => {
      this.#copy();
      this.#tell(this.frameAt(about.mediaTime));
      this.#follow();
    });
  }

  #copy() {
    const { videoWidth, videoHeight } = this.video;
    if (this.picture.width !== videoWidth || this.picture.height !== videoHeight) {
      this.picture.width = videoWidth;
      this.picture.height = videoHeight;
    }
    this.picture.getContext("2d").drawImage(this.video, 0, 0, videoWidth, videoHeight);
  }

  #tell(frame) {
    this.frame = frame;
    for (const listener of this.listeners) listener(frame);
  }
}
