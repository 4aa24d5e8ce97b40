// Random numbers as NumPy's RandomState draws them, so that a seed makes the same latents here as
// in Python: MT19937 (Matsumoto and Nishimura, 1998) and the polar method (Marsaglia and Bray,
// 1964), as in NumPy's legacy generator.

const N = 624;
const M = 397;

export class RandomState {
  constructor(seed) {
    this.state = new Uint32Array(N);
    this.state[0] = seed >>> 0;
    for (let i = 1; i < N; i += 1) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.position = N;
    this.spare = null;
  }

  word() {
    const s = this.state;
    if (this.position === N) {
      for (let i = 0; i < N; i += 1) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
        s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.position = 0;
    }
    let y = s[this.position];
    this.position += 1;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  uniform() {
    const high = this.word() >>> 5;
    const low = this.word() >>> 6;
    return (high * 67108864 + low) / 9007199254740992;
  }

  normal() {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    for (;;) {
      const a = 2 * this.uniform() - 1;
      const b = 2 * this.uniform() - 1;
      const square = a * a + b * b;
      if (square < 1 && square !== 0) {
        const scale = Math.sqrt((-2 * Math.log(square)) / square);
        this.spare = scale * a;
        return scale * b;
      }
    }
  }

  // Normal numbers; with a reach, those beyond it are drawn anew, in turn, until none is left.
  normals(count, reach = null) {
    const made = Float64Array.from({ length: count }, () => this.normal());
    const beyond = () => made.findIndex((value) => Math.abs(value) > reach);
    if (reach !== null) {
      for (let i = beyond(); i >= 0; i = beyond()) made[i] = this.normal();
    }
    return Float32Array.from(made);
  }
}

// The point at `share` of the great circle from a to b (Shoemake, 1985), which keeps the length of
// normal latents.
export function between(a, b, share) {
  let dot = 0;
  let aa = 0;
  let bb = 0;
  for (let i = 0; i < a.length; i += 1) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const angle = Math.acos(Math.max(-1, Math.min(1, dot / Math.sqrt(aa * bb || 1))));
  const flat = !(angle > 1e-4 && angle < Math.PI - 1e-4);
  const one = flat ? 1 - share : Math.sin((1 - share) * angle) / Math.sin(angle);
  const two = flat ? share : Math.sin(share * angle) / Math.sin(angle);
  return a.map((value, i) => one * value + two * b[i]);
}
