import { expect, test } from 'vitest';
import { boxMuller, mulHi, normals, permutation, philox4x32, RngStream, seedKey, uniform01, uniforms } from '../../src/engine/rng';

// Random123's tests/kat_vectors, philox4x32 with 10 rounds.
test.each([
  [[0, 0, 0, 0], [0, 0], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
  [[0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff], [0xffffffff, 0xffffffff], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]],
  [[0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]],
] as [[number, number, number, number], [number, number], number[]][])('philox4x32 gives the known answer for counter %j', (counter, key, expected) => {
  expect(philox4x32(counter, key)).toEqual(expected);
});

test('mulHi agrees with 64-bit integers', () => {
  const edges = [0, 1, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xd2511f53, 0xffffffff];
  for (const a of edges) for (const b of edges) expect(mulHi(a, b)).toBe(Number((BigInt(a) * BigInt(b)) >> 32n));
});

test('uniform01 stays inside (0, 1) and normals stay finite at both ends', () => {
  expect(uniform01(0)).toBe(2 ** -33);
  expect(uniform01(0xffffffff)).toBeLessThan(1);
  for (const x of [0, 0xffffffff]) for (const y of [0, 0xffffffff]) expect(boxMuller(x, y).every(Number.isFinite)).toBe(true);
});

test('normals have the moments of a standard normal and uniforms those of a uniform', () => {
  const n = 100_000;
  const moment = (values: Float32Array, power: number): number => values.reduce((sum, v) => sum + v ** power, 0) / n;
  const z = normals(7, { index: 3, step: 5 }, n);
  // five standard errors: sqrt(Var(z^k) / n)
  expect(Math.abs(moment(z, 1))).toBeLessThan(5 * Math.sqrt(1 / n));
  expect(Math.abs(moment(z, 2) - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
  expect(Math.abs(moment(z, 4) - 3)).toBeLessThan(5 * Math.sqrt(96 / n));
  const u = uniforms(7, { index: 3, step: 5 }, n);
  expect(Math.abs(moment(u, 1) - 0.5)).toBeLessThan(5 * Math.sqrt(1 / 12 / n));
});

test('numbers depend on seed, index, step and stream, and not on how many are drawn', () => {
  const reference = normals(1, { index: 2, step: 3 }, 9);
  expect(normals(1, { index: 2, step: 3 }, 6)).toEqual(reference.slice(0, 6));
  for (const other of [normals(2, { index: 2, step: 3 }, 9), normals(1, { index: 3, step: 3 }, 9), normals(1, { index: 2, step: 4 }, 9), normals(1, { index: 2, step: 3, stream: RngStream.init }, 9), normals(1 + 2 ** 32, { index: 2, step: 3 }, 9)]) {
    expect(other).not.toEqual(reference);
  }
  const [x0, x1] = philox4x32([1, 2, 3, RngStream.noise], seedKey(1));
  expect(reference[4]).toBe(Math.fround(boxMuller(x0, x1)[0]));
});

test('permutation is one, and its first place is uniform', () => {
  for (const length of [0, 1, 2, 5, 97]) expect(Array.from(permutation(length, 4, {})).sort((a, b) => a - b)).toEqual(Array.from({ length }, (_, i) => i));
  const counts = new Array<number>(6).fill(0);
  for (let step = 0; step < 6000; step++) counts[permutation(6, 0, { step })[0]!]!++;
  const chiSquared = counts.reduce((sum, c) => sum + (c - 1000) ** 2 / 1000, 0);
  expect(chiSquared).toBeLessThan(20.5); // 5 degrees of freedom, p = 0.001; the stream is fixed, so this cannot flake
});

test.each([-1, 1.5, NaN, 2 ** 53])('seed %d is refused', (seed) => {
  expect(() => seedKey(seed)).toThrow(/whole number from 0/);
});
