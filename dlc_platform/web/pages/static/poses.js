// The poses of a file, fetched in stretches of frames as they are needed, and kept while they are near.

const CHUNK = 1024;
const KEPT = 24;
const UNKNOWN = new Float32Array([NaN, NaN, NaN]);

export async function floats(address, kind = Float32Array) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json()).problem);
  return new kind(await answer.arrayBuffer());
}

export class Poses {
  // places: where the poses have each keypoint of the page; -1 for one that they do not have.
  constructor(address, frames, places) {
    this.address = address;
    this.frames = frames;
    this.places = places;
    this.chunks = new Map();
  }

  #chunk(number) {
    let chunk = this.chunks.get(number);
    if (!chunk) {
      const first = number * CHUNK;
      const last = Math.min(first + CHUNK, this.frames);
      chunk = { length: last - first, values: null };
      chunk.ready = floats(`${this.address}?first=${first}&last=${last}`).then((values) => {
        chunk.values = values;
      });
      chunk.ready.catch(() => this.chunks.delete(number));
    } else {
      this.chunks.delete(number);
    }
    // The ones that were used last are the last to go.
    this.chunks.set(number, chunk);
    for (const old of this.chunks.keys()) {
      if (this.chunks.size <= KEPT) break;
      this.chunks.delete(old);
    }
    return chunk;
  }

  // Resolves when a frame and what comes after it is there.
  async ready(frame) {
    const number = Math.floor(frame / CHUNK);
    if ((number + 1) * CHUNK < this.frames) this.#chunk(number + 1);
    await this.#chunk(number).ready;
  }

  // x, y and likelihood of a keypoint in a frame; null while they are fetched.
  at(frame, keypoint) {
    const chunk = this.chunks.get(Math.floor(frame / CHUNK));
    if (!chunk?.values) return null;
    if (this.places[keypoint] < 0) return UNKNOWN;
    const place = (this.places[keypoint] * chunk.length + (frame % CHUNK)) * 3;
    return chunk.values.subarray(place, place + 3);
  }
}

// The poses of the same video by another model, which may know other body parts, in another order.
export async function otherPoses(estimate, about) {
  const answer = await fetch(`/poses/${estimate}/about.json`);
  const other = await answer.json();
  if (!answer.ok) throw new Error(other.problem);
  const places = about.keypoints.map((keypoint) =>
    other.keypoints.findIndex(([individual, bodypart]) => individual === keypoint.individual && bodypart === keypoint.bodypart),
  );
  return new Poses(`/poses/${estimate}/window`, Math.min(other.frames, about.frames), places);
}
