import { check } from './errors';

/**
 * Counter-based random numbers, Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
 * 1, 2, 3", SC'11), bit for bit as in Random123. A number is a pure function of (seed, what it is for), so it does not
 * depend on batch size, order or what was drawn before; the GPU kernels draw the same stream.
 *
 * Convention shared by host and GPU: `key = [seed low, seed high]`, `counter = [block, index, step, stream]`, where
 * `block` counts groups of four numbers inside one sample, `index` is the sample (or data set item), `step` the
 * diffusion step, training step or epoch, and `stream` one of {@link RngStream} so that uses never share numbers.
 */

export type U32x2 = readonly [number, number];
export type U32x4 = readonly [number, number, number, number];

/** What the numbers are for: the fourth counter word. */
export const RngStream = { noise: 0, timestep: 1, dropout: 2, condition: 3, init: 4, shuffle: 5, flip: 6, split: 7, latent: 8, scene: 9 } as const;

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two u32 (every partial sum stays below 2^53). */
export function mulHi(a: number, b: number): number {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const middle = aHigh * bLow + Math.floor((aLow * bLow) / 0x10000);
  const carry = aLow * bHigh + (middle % 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0;
}

/** Four random u32 for a 128-bit counter and a 64-bit key. */
export function philox4x32(counter: U32x4, key: U32x2): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHi(MULTIPLIER_0, c0), low0 = Math.imul(MULTIPLIER_0, c0);
    const high1 = mulHi(MULTIPLIER_1, c2), low1 = Math.imul(MULTIPLIER_1, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The key of a seed, an integer in [0, 2^53). */
export function seedKey(seed: number): [number, number] {
  check(Number.isSafeInteger(seed) && seed >= 0, 'input', () => `seed ${seed}: a seed is a whole number from 0 to 2^53 - 1.`);
  return [seed >>> 0, Math.floor(seed / 2 ** 32)];
}

/** A u32 as a number inside (0, 1), never 0, so that its logarithm is finite: (x + 0.5) * 2^-32. */
export function uniform01(x: number): number {
  return (x + 0.5) * 2 ** -32;
}

/** Two standard normal numbers from two u32 (Box and Muller 1958); the cosine comes first. */
export function boxMuller(x1: number, x2: number): [number, number] {
  const radius = Math.sqrt(-2 * Math.log(uniform01(x1)));
  const angle = 2 * Math.PI * uniform01(x2);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/** Where in the random space a sample's numbers lie: the last three counter words. */
export interface RngPlace {
  readonly index?: number;
  readonly step?: number;
  readonly stream?: number;
}

/** The Philox blocks holding `count` numbers of one place: the position of the first number, and its four words. */
function* blocks(seed: number, { index = 0, step = 0, stream = RngStream.noise }: RngPlace, count: number): Generator<[number, [number, number, number, number]]> {
  const key = seedKey(seed);
  for (let start = 0; start < count; start += 4) yield [start, philox4x32([start >>> 2, index >>> 0, step >>> 0, stream], key)];
}

/** `count` uniform numbers in (0, 1) of one sample, [count] f32 (rounding to f32 may give exactly 1). */
export function uniforms(seed: number, place: RngPlace, count: number): Float32Array {
  const out = new Float32Array(count);
  for (const [start, words] of blocks(seed, place, count)) out.set(words.map(uniform01).slice(0, count - start), start);
  return out;
}

/** `count` standard normal numbers of one sample, [count] f32: words 0 and 1 of a block make two, words 2 and 3 two more. */
export function normals(seed: number, place: RngPlace, count: number): Float32Array {
  const out = new Float32Array(count);
  for (const [start, [a, b, c, d]] of blocks(seed, place, count)) out.set([...boxMuller(a, b), ...boxMuller(c, d)].slice(0, count - start), start);
  return out;
}

/** `count` integers from 0 to `limit` − 1 of one sample: word·limit·2^-32 rounded down (the bias is below limit * 2^-32). */
export function integers(seed: number, place: RngPlace, count: number, limit: number): Uint32Array {
  const out = new Uint32Array(count);
  for (const [start, words] of blocks(seed, place, count)) out.set(words.map((w) => mulHi(w, limit)).slice(0, count - start), start);
  return out;
}

/** Below this a random word drops an element, for a probability of `p`. */
export const dropoutLimit = (p: number): number => Math.min(Math.round(p * 2 ** 32), 0xffffffff);

/** 1 where dropout with probability `p` keeps an element of one sample, else 0. */
export function dropoutMask(seed: number, place: RngPlace, count: number, p: number): Uint8Array {
  const out = new Uint8Array(count);
  for (const [start, words] of blocks(seed, place, count)) out.set(words.map((w) => (w < dropoutLimit(p) ? 0 : 1)).slice(0, count - start), start);
  return out;
}

/** A random order of 0..length-1 (Fisher-Yates; the bias of the multiply-shift bound is below length * 2^-32). */
export function permutation(length: number, seed: number, place: RngPlace): Uint32Array {
  const order = Uint32Array.from({ length }, (_, i) => i);
  for (const [start, words] of blocks(seed, place, length)) {
    for (let i = start; i < Math.min(start + 4, length); i++) {
      const at = length - 1 - i;
      const other = mulHi(words[i - start]!, at + 1);
      const value = order[at]!;
      order[at] = order[other]!;
      order[other] = value;
    }
  }
  return order;
}
