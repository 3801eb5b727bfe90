/** The weights of torch.nn.functional.interpolate; the kernel that applies them is tested with the other ops. */
import { expect, test } from 'vitest';
import { resampleTable, type InterpolateOptions } from '../../src/engine/ops/interpolate';

/** The whole matrix [out][size]. */
function matrix(size: number, out: number, options: InterpolateOptions): number[][] {
  const { first, weights } = resampleTable(size, out, options);
  return weights.map((row, o) => {
    const dense = new Array<number>(size).fill(0);
    row.forEach((w, k) => (dense[first[o]! + k]! += w));
    return dense;
  });
}
const close = (a: number[][], b: number[][]) => a.forEach((row, i) => row.forEach((v, j) => expect(v, `[${i}][${j}]`).toBeCloseTo(b[i]![j]!, 12)));

test('bicubic without antialias: a = -0.75, the edge repeated', () => {
  const [far, near, half, tail] = [-0.03515625, 0.26171875, 0.87890625, -0.10546875];
  close(matrix(4, 8, { mode: 'bicubic' }).slice(0, 4), [
    [far + near + half, tail, 0, 0],
    [tail + half, near, far, 0],
    [far + near, half, tail, 0],
    [tail, half, near, far],
  ]);
});

test('bicubic with antialias: a = -0.5, taps beyond the edge dropped', () => {
  const [far, near, half, tail] = [-0.0234375, 0.2265625, 0.8671875, -0.0703125];
  const rest = half + tail;
  close(matrix(4, 8, { mode: 'bicubic', antialias: true }).slice(0, 4), [
    [half / rest, tail / rest, 0, 0],
    [half / (1 - tail), near / (1 - tail), far / (1 - tail), 0],
    [near / (1 - far), half / (1 - far), tail / (1 - far), 0],
    [tail, half, near, far],
  ]);
});

test('bilinear', () => {
  close(matrix(3, 5, { mode: 'bilinear', alignCorners: true }), [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]);
  close(matrix(2, 4, { mode: 'bilinear' }), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]);
  close(matrix(4, 2, { mode: 'bilinear' }), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]);
  // A triangle as wide as two output pixels.
  close(matrix(4, 2, { mode: 'bilinear', antialias: true }), [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]);
});

test('every row sums to 1, and the same size is the identity', () => {
  const modes: InterpolateOptions[] = [{ mode: 'bicubic' }, { mode: 'bicubic', antialias: true }, { mode: 'bilinear' }, { mode: 'bilinear', alignCorners: true }, { mode: 'bilinear', antialias: true }];
  for (const options of modes) {
    for (const [size, out] of [[7, 7], [5, 13], [13, 5], [1, 4], [4, 1], [64, 7]] as const)
      for (const row of matrix(size, out, options)) expect(row.reduce((a, b) => a + b)).toBeCloseTo(1, 12);
    matrix(7, 7, options).forEach((row, i) => row.forEach((w, j) => expect(w).toBeCloseTo(i === j ? 1 : 0, 12)));
  }
});

test('refuses what has no meaning', () => {
  expect(() => resampleTable(4, 0, { mode: 'bilinear' })).toThrow(/at least 1/);
  expect(() => resampleTable(4, 8, { mode: 'bilinear', alignCorners: true, antialias: true })).toThrow(/cannot be combined/);
});
