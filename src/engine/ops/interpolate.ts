import shader from '../../../shaders/interpolate.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type OpDef } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape } from '../shape';

/** Along one axis: output o is Σ_k weights[o][k] · x[first[o] + k]. */
export interface ResampleTable {
  readonly first: readonly number[];
  /** As many for every o; `first + taps` is at most the input's size. */
  readonly weights: readonly (readonly number[])[];
}

export interface InterpolateOptions {
  readonly mode: 'bilinear' | 'bicubic';
  /** Centres of the corner pixels stay where they are, instead of the image's edges. */
  readonly alignCorners?: boolean;
  /** When shrinking, average over what an output pixel covers. Changes what "bicubic" is when enlarging, too: see {@link resampleTable}. */
  readonly antialias?: boolean;
}

/** Keys (1981): the cubic convolution kernel with parameter a. */
const cubic = (x: number, a: number): number => (x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0);
const kernels = {
  bilinear: { radius: 1, at: (x: number): number => Math.max(1 - x, 0) },
  bicubic: { radius: 2, at: cubic },
};

/**
 * Weights of torch.nn.functional.interpolate from `size` to `out` pixels, in float64. Without `antialias` the cubic kernel has a = −0.75 and pixels
 * beyond the edge repeat it; with it (as Pillow resizes), a = −0.5, the kernel is as wide as the larger of the two grids' pixels, and taps beyond the edge are
 * dropped and the rest scaled to a sum of 1.
 */
export function resampleTable(size: number, out: number, { mode, alignCorners = false, antialias = false }: InterpolateOptions): ResampleTable {
  check([size, out].every((d) => Number.isInteger(d) && d >= 1), 'shape', () => `interpolate: sizes must be integers of at least 1, got ${size} to ${out}`);
  check(!(antialias && alignCorners), 'input', () => 'interpolate: antialias and alignCorners cannot be combined');
  const { radius, at } = kernels[mode];
  const ratio = alignCorners ? (out > 1 ? (size - 1) / (out - 1) : 0) : size / out;
  const stretch = antialias ? Math.max(ratio, 1) : 1;
  const rows = Array.from({ length: out }, (_, o) => {
    const sums = new Map<number, number>();
    const put = (i: number, distance: number): void => void sums.set(i, (sums.get(i) ?? 0) + at(Math.abs(distance), antialias ? -0.5 : -0.75));
    const centre = alignCorners ? o * ratio : (o + 0.5) * ratio - 0.5;
    if (antialias) {
      const reach = radius * stretch;
      for (let i = Math.max(Math.floor(centre - reach + 1), 0); i < Math.min(Math.floor(centre + reach + 1), size); i++) put(i, (i - centre) / stretch);
    } else for (let i = Math.floor(centre) - radius + 1; i <= Math.floor(centre) + radius; i++) put(Math.min(Math.max(i, 0), size - 1), i - centre);
    const total = [...sums.values()].reduce((a, b) => a + b, 0);
    return [...sums].map(([i, w]) => [i, w / total] as const);
  });
  return packTable(rows, size);
}

/** Entries (index, weight) of neighbouring pixels, ascending, as rows of equal length. */
function packTable(rows: readonly (readonly (readonly [index: number, weight: number])[])[], size: number): ResampleTable {
  const taps = Math.max(1, ...rows.map((row) => row.length));
  const first = rows.map((row) => Math.min(row[0]?.[0] ?? 0, size - taps));
  return {
    first,
    weights: rows.map((row, o) => {
      const weights = new Array<number>(taps).fill(0);
      for (const [i, w] of row) weights[i - first[o]!] = w;
      return weights;
    }),
  };
}

/** The table of the transposed map, from `first.length` pixels to `size`: what each input pixel gave to which outputs. */
function transposeTable({ first, weights }: ResampleTable, size: number): ResampleTable {
  const rows: [number, number][][] = Array.from({ length: size }, () => []);
  weights.forEach((row, o) => row.forEach((w, k) => w !== 0 && rows[first[o]! + k]!.push([o, w])));
  // Outputs whose weight happens to be 0 may lie between others.
  return packTable(rows.map((row) => (row.length ? Array.from({ length: row[row.length - 1]![0] - row[0]![0] + 1 }, (_, k) => [row[0]![0] + k, row.find(([o]) => o === row[0]![0] + k)?.[1] ?? 0] as const) : [])), first.length);
}

const flat = ({ first, weights }: ResampleTable): number[] => weights.flatMap((row, o) => [first[o]!, ...row]);

interface InterpolateAttrs {
  readonly rows: ResampleTable;
  readonly columns: ResampleTable;
}

const interpolateOp: OpDef<InterpolateAttrs> = defineOp<InterpolateAttrs>({
  name: 'interpolate',
  doc: 'Separable resampling of [N,H,W,C] to another height and width by tables of weights (torch.nn.functional.interpolate: bilinear, bicubic, with or without antialias). Its gradient is another one with the tables transposed.',
  infer([x, rows, columns], attrs) {
    check(x!.shape.length === 4, 'shape', () => `${showShape(x!.shape)} is not [N,H,W,C]`);
    ([[rows!, attrs.rows, x!.shape[1]!], [columns!, attrs.columns, x!.shape[2]!]] as const).forEach(([table, { first, weights }, size]) => {
      const taps = weights[0]?.length ?? 0;
      check(taps > 0 && table.shape[0] === first.length && table.shape[1] === taps + 1, 'shape', () => `the table ${showShape(table.shape)} must be [${first.length}, ${taps + 1}]`);
      check(first.every((i) => i >= 0 && i + taps <= size), 'shape', () => `the table reaches beyond the ${size} pixels of ${showShape(x!.shape)}`);
    });
    return [{ shape: [x!.shape[0]!, attrs.rows.first.length, attrs.columns.first.length, x!.shape[3]!], dtype: x!.dtype }];
  },
  lower({ inputs: [x, rows, columns], outputs: [y], dispatch }) {
    const width = x!.shape[3]! % 4 === 0 ? 4 : 1;
    const count = numel(y!.shape) / width;
    dispatch({
      shader: { file: 'interpolate.wgsl', text: shader },
      entry: 'forward',
      prologue: { V: vectorType('f32', width), X: vectorType(x!.dtype, width), Y: vectorType(y!.dtype, width), WIDTH: `${width}u` },
      bindings: { x: x!, rows: rows!, columns: columns!, y: y! },
      params: { count, channels: x!.shape[3]! / width, x_height: x!.shape[1]!, x_width: x!.shape[2]!, y_height: y!.shape[1]!, y_width: y!.shape[2]!, row_taps: rows!.shape[1]! - 1, column_taps: columns!.shape[1]! - 1 },
      workgroups: Math.ceil(count / 64),
      epilogueWidth: width,
    });
  },
  flops: ([, rows, columns], [y]) => 2 * numel(y!.shape) * (rows!.shape[1]! - 1) * columns!.shape[1]!,
  grad: ({ inputs: [x], outputGrads, attrs: { rows, columns } }) => [resample(outputGrads[0]!, transposeTable(rows, x!.shape[1]!), transposeTable(columns, x!.shape[2]!)), undefined, undefined],
  // Tables are fixed: no gradient goes to them.
  integerInputs: [1, 2],
  epilogueBuffers: 4,
});

function resample(x: Tensor, rows: ResampleTable, columns: ResampleTable): Tensor {
  const table = (t: ResampleTable): Tensor => x.graph.constant('resample', [t.first.length, t.weights[0]!.length + 1], Float32Array.from(flat(t)));
  return x.graph.add1(interpolateOp, [x, table(rows), table(columns)], { rows, columns });
}

/** Resizes `x` [N,H,W,C] to `size` = [height, width], as torch.nn.functional.interpolate does with `size` given. */
export const interpolate = (x: Tensor, [height, width]: readonly [number, number], options: InterpolateOptions): Tensor => {
  check(x.shape.length === 4, 'shape', () => `interpolate: ${showShape(x.shape)} is not [N,H,W,C]`);
  return resample(x, resampleTable(x.shape[1]!, height, options), resampleTable(x.shape[2]!, width, options));
};

const testCase = (name: string, shape: readonly [number, number, number, number], size: readonly [number, number], options: InterpolateOptions, more: { skipGrad?: boolean; bench?: boolean } = {}) => {
  const [rows, columns] = [resampleTable(shape[1], size[0], options), resampleTable(shape[2], size[1], options)];
  const input = (t: ResampleTable) => ({ shape: [t.first.length, t.weights[0]!.length + 1], dtype: 'f32' as const, fill: { values: flat(t) } });
  return { name, inputs: [{ shape }, input(rows), input(columns)], attrs: { rows, columns }, ...more };
};

export const tests = opTests<InterpolateAttrs>({
  op: interpolateOp,
  reference([x], { rows, columns }) {
    const [n, h, w, c] = x!.shape as [number, number, number, number];
    const y: number[] = [];
    for (let b = 0; b < n; b++)
      for (const [i, top] of rows.first.entries())
        for (const [j, left] of columns.first.entries())
          for (let k = 0; k < c; k++) {
            let total = 0;
            rows.weights[i]!.forEach((u, r) => columns.weights[j]!.forEach((v, s) => (total += u * v * x!.data[((b * h + top + r) * w + left + s) * c + k]!)));
            y.push(total);
          }
    return [Float64Array.from(y)];
  },
  cases: [
    testCase('bicubic, enlarged, antialias', [2, 5, 7, 3], [10, 14], { mode: 'bicubic', antialias: true }),
    testCase('bicubic, uneven factors', [1, 6, 4, 4], [11, 3], { mode: 'bicubic' }),
    testCase('bicubic, shrunk, antialias', [1, 13, 9, 4], [4, 5], { mode: 'bicubic', antialias: true }),
    testCase('bilinear, corners aligned', [2, 4, 5, 3], [9, 8], { mode: 'bilinear', alignCorners: true }),
    testCase('bilinear, shrunk: pixels that nothing reads', [1, 11, 7, 1], [3, 2], { mode: 'bilinear' }),
    testCase('one pixel to many, many to one', [1, 1, 6, 1], [5, 1], { mode: 'bicubic', antialias: true }),
    testCase('Karlo before its super-resolution', [1, 64, 64, 3], [256, 256], { mode: 'bicubic', antialias: true }, { skipGrad: true, bench: true }),
  ],
});
