// Random values for tests that try many: the same for the same seed, which a failing test names.
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** A number from 0 to below `below`. */
  below(below) {
    // mulberry32
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below | 0;
  }

  one(list) {
    return list[this.below(list.length)];
  }

  bytes(max) {
    return Uint8Array.from({ length: this.below(max + 1) }, () => this.below(256));
  }

  text(max) {
    const letters = ["a", "Z", "0", ".", "ß", "世", "😀", "\0", '"', "\n", "_bw."];
    return Array.from({ length: this.below(max + 1) }, () => this.one(letters)).join("");
  }
}

/** Runs a test for so many seeds, and says which one failed. */
export function seeds(count, run) {
  for (let seed = 1; seed <= count; seed++) {
    try {
      run(new Random(seed));
    } catch (error) {
      error.message = `with seed ${seed}: ${error.message}`;
      throw error;
    }
  }
}
