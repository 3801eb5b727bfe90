import sumShader from '../../../shaders/sum.wgsl';
import { BruitError } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type Bindable } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape, type Shape } from '../shape';
import { expand, mul } from './pointwise';
import { reshape } from './reshape';

interface SumAttrs {
  /** A run of neighbouring axes, ascending. */
  readonly axes: readonly number[];
  /** Factor on the result: 1, or 1/n for a mean. */
  readonly scale: number;
  /** Sums squares. */
  readonly square?: boolean;
}

const keepDims = (shape: Shape, axes: readonly number[]): Shape => shape.map((d, i) => (axes.includes(i) ? 1 : d));

export const sumOp = defineOp<SumAttrs>({
  name: 'sum',
  doc: 'Sum over neighbouring axes, times a constant; reduced axes stay with size 1. Fixed-order passes, so it repeats bit for bit.',
  infer([x], { axes }) {
    for (const a of axes) if (a < 0 || a >= x!.shape.length) throw new BruitError('shape', `axis ${a} is not one of ${showShape(x!.shape)}`);
    return [{ shape: keepDims(x!.shape, axes), dtype: 'f32' }];
  },
  lower({ inputs: [x], outputs: [y], attrs: { axes, scale, square = false }, temp, dispatch }) {
    const first = axes[0]!;
    const last = axes[axes.length - 1]!;
    const outer = numel(x!.shape.slice(0, first));
    const inner = numel(x!.shape.slice(last + 1));
    let reduce = numel(x!.shape.slice(first, last + 1));
    let source: Bindable = x!;
    const width = inner % 4 === 0 ? 4 : 1;
    for (let pass = 0; ; pass++) {
      // Enough invocations to fill a GPU, each adding at least 32 elements, at most 512: the last pass stays short.
      const wanted = Math.ceil(16384 / ((outer * inner) / width));
      const chunks = reduce <= 64 ? 1 : Math.max(Math.ceil(reduce / 512), Math.min(wanted, Math.floor(reduce / 32)));
      const done = chunks === 1;
      const target: Bindable = done ? y! : temp(`partial${pass}`, [outer, chunks, inner]);
      dispatch({
        shader: { file: 'sum.wgsl', text: sumShader },
        entry: 'forward',
        prologue: { V: vectorType('f32', width), X: vectorType(source.dtype, width), Y: vectorType(target.dtype, width), SQUARE: square && pass === 0 },
        bindings: { x: source, y: target },
        params: { outer, reduce, inner: inner / width, chunks, scale: done ? scale : 1 },
        workgroups: Math.ceil((outer * chunks * inner) / width / 64),
      });
      if (done) return;
      source = target;
      reduce = chunks;
    }
  },
  flops: ([x]) => numel(x!.shape),
  grad({ inputs: [x], outputGrads, attrs: { scale, square } }) {
    return [square ? mul(x!, expand(outputGrads[0]!, x!.shape, 2 * scale)) : expand(outputGrads[0]!, x!.shape, scale)];
  },
});

/** Sum of `x` over `axes` (all by default), reduced axes kept with size 1, times `scale`. */
export function sum(x: Tensor, axes: readonly number[] = x.shape.map((_, i) => i), scale = 1): Tensor {
  const sorted = axes.map((a) => (a < 0 ? a + x.shape.length : a)).sort((a, b) => b - a);
  let y = x;
  let k = 0;
  while (k < sorted.length) {
    const run = [sorted[k]!];
    while (k + run.length < sorted.length && sorted[k + run.length] === run[run.length - 1]! - 1) run.push(sorted[k + run.length]!);
    k += run.length;
    y = y.graph.add1(sumOp, [y], { axes: run.reverse(), scale: k === sorted.length ? scale : 1 });
  }
  return y;
}

/** Sum of squares of everything, as a tensor of shape [1]. */
export function sumSquares(x: Tensor): Tensor {
  return reshape(x.graph.add1(sumOp, [x], { axes: x.shape.map((_, i) => i), scale: 1, square: true }), [1]);
}

/** Mean over `axes` (all by default), reduced axes kept with size 1. */
export function mean(x: Tensor, axes: readonly number[] = x.shape.map((_, i) => i)): Tensor {
  return sum(x, axes, 1 / axes.reduce((n, a) => n * x.shape[a < 0 ? a + x.shape.length : a]!, 1));
}

/** `sum` or `mean` over everything as a tensor of shape [1]. */
export const total = (x: Tensor, scale = 1): Tensor => reshape(sum(x, undefined, scale), [1]);

export const tests = opTests<SumAttrs>({
  op: sumOp,
  reference([x], { axes, scale, square }) {
    const first = axes[0]!;
    const outer = numel(x!.shape.slice(0, first));
    const reduce = numel(x!.shape.slice(first, first + axes.length));
    const inner = numel(x!.shape.slice(first + axes.length));
    const y = new Float64Array(outer * inner);
    for (let o = 0; o < outer; o++) for (let r = 0; r < reduce; r++) for (let i = 0; i < inner; i++) y[o * inner + i]! += scale * x!.data[(o * reduce + r) * inner + i]! ** (square ? 2 : 1);
    return [y];
  },
  cases: [
    { name: 'rows', inputs: [{ shape: [5, 37] }], attrs: { axes: [1], scale: 1 } },
    { name: 'columns, several passes', inputs: [{ shape: [20011, 3] }], attrs: { axes: [0], scale: 1 }, tolerance: 1e-5 },
    { name: 'middle, vec4', inputs: [{ shape: [2, 9, 7, 8] }], attrs: { axes: [1, 2], scale: 1 / 63 } },
    { name: 'everything', inputs: [{ shape: [3, 701] }], attrs: { axes: [0, 1], scale: 0.5 }, tolerance: 1e-5 },
    { name: 'squares, several passes', inputs: [{ shape: [7, 3001] }], attrs: { axes: [0, 1], scale: 1, square: true }, tolerance: 1e-5 },
    { name: 'one element', inputs: [{ shape: [1] }], attrs: { axes: [0], scale: 1 } },
    { name: 'bias gradient of a U-Net layer', inputs: [{ shape: [4, 32, 32, 128] }], attrs: { axes: [0, 1, 2], scale: 1 }, tolerance: 1e-5, skipGrad: true, bench: true },
  ],
});
