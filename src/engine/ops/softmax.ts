import gradShader from '../../../shaders/softmax_grad.wgsl';
import forwardShader from '../../../shaders/softmax.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, sameShape, showShape, type Shape } from '../shape';
import { rowKernel } from './row_kernel';

type NoAttrs = Record<never, never>;

const sizesOf = (shape: Shape) => {
  const columns = shape[shape.length - 1]!;
  return { columns, rows: numel(shape) / columns };
};

export const softmaxGradOp = defineOp<NoAttrs>({
  name: 'softmax_grad',
  doc: 'dx = y·(dy − Σ dy·y) over the last axis, from the softmax y and dy.',
  infer([y, dy]) {
    check(sameShape(y!.shape, dy!.shape), 'shape', () => `dy ${showShape(dy!.shape)} must have y's shape ${showShape(y!.shape)}`);
    return [{ shape: y!.shape, dtype: y!.dtype }];
  },
  variants: ['direct', 'tiled'],
  epilogueBuffers: 5,
  lower({ inputs, outputs, profile, variant, dispatch }) {
    const [y, dy] = inputs as [Tensor, Tensor];
    const dx = outputs[0]!;
    const sizes = sizesOf(y.shape);
    const width = sizes.columns % 4 === 0 ? 4 : 1;
    dispatch({
      shader: { file: 'softmax_grad.wgsl', text: gradShader },
      prologue: { V: vectorType('f32', width), Y: vectorType(y.dtype, width), DY: vectorType(dy.dtype, width), DX: vectorType(dx.dtype, width), WIDTH: `${width}u` },
      includes: { 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` },
      bindings: { y, dy, dx },
      params: sizes,
      epilogueWidth: width,
      ...rowKernel(sizes.rows, sizes.columns, profile.kind, variant),
    });
  },
  flops: ([y]) => 4 * numel(y!.shape),
  grad: { notDifferentiable: 'gradients of gradients are not built' },
});

export const softmaxOp = defineOp<NoAttrs>({
  name: 'softmax',
  doc: 'exp(x − max)/Σ exp(x − max) over the last axis. Masked entries are large finite negative numbers; a row with nothing else is uniform.',
  infer([x]) {
    check(x!.shape.length > 0, 'shape', () => 'x has no axis to normalise over');
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  variants: ['direct', 'tiled'],
  epilogueBuffers: 6,
  lower({ inputs, outputs, profile, variant, dispatch }) {
    const x = inputs[0]!;
    const sizes = sizesOf(x.shape);
    const width = sizes.columns % 4 === 0 ? 4 : 1;
    dispatch({
      shader: { file: 'softmax.wgsl', text: forwardShader },
      prologue: { V: vectorType('f32', width), X: vectorType(x.dtype, width), WIDTH: `${width}u` },
      includes: { 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` },
      bindings: { x, y: outputs[0]! },
      params: sizes,
      epilogueWidth: width,
      ...rowKernel(sizes.rows, sizes.columns, profile.kind, variant),
    });
  },
  flops: ([x]) => 8 * numel(x!.shape),
  grad: ({ graph, outputs, outputGrads }) => [graph.add1(softmaxGradOp, [outputs[0]!, outputGrads[0]!], {})],
});

/** softmax of `x` over its last axis. */
export const softmax = (x: Tensor): Tensor => x.graph.add1(softmaxOp, [x], {});

const rowsOf = (shape: Shape, each: (first: number, end: number) => void) => {
  const { rows, columns } = sizesOf(shape);
  for (let r = 0; r < rows; r++) each(r * columns, (r + 1) * columns);
};

export const tests = [
  opTests<NoAttrs>({
    op: softmaxOp,
    reference([x]) {
      const y = new Float64Array(x!.data.length);
      rowsOf(x!.shape, (first, end) => {
        const top = x!.data.subarray(first, end).reduce((m, v) => Math.max(m, v), -Infinity);
        let total = 0;
        for (let i = first; i < end; i++) total += y[i] = Math.exp(x!.data[i]! - top);
        for (let i = first; i < end; i++) y[i]! /= total;
      });
      return [y];
    },
    cases: [
      { name: 'odd rows', inputs: [{ shape: [3, 5, 37] }], attrs: {} },
      { name: 'one column', inputs: [{ shape: [7, 1] }], attrs: {} },
      { name: 'one vector more than a workgroup', inputs: [{ shape: [17, 260] }], attrs: {} },
      { name: 'two long rows', inputs: [{ shape: [2, 20000], fill: { mean: 0, std: 4 } }], attrs: {}, tolerance: 2e-5, skipGrad: true },
      { name: 'far from zero', inputs: [{ shape: [4, 12], fill: { mean: 30000, std: 5 } }], attrs: {}, tolerance: 1e-5, skipGrad: true },
      // The first row is masked whole, the second in part.
      { name: 'masked by the largest finite numbers', inputs: [{ shape: [2, 4], dtype: 'f32', fill: { values: [-3e38, -3e38, -3e38, -3e38, 1, -3e38, 2, 3] } }], attrs: {}, skipGrad: true },
      { name: 'more rows than 65,535 workgroups', inputs: [{ shape: [65551, 3] }], attrs: {}, skipGrad: true },
      { name: 'attention scores at 16×16', inputs: [{ shape: [8, 256, 256] }], attrs: {}, tolerance: 1e-5, skipGrad: true, bench: true },
    ],
  }),
  opTests<NoAttrs>({
    op: softmaxGradOp,
    reference([y, dy]) {
      const dx = new Float64Array(y!.data.length);
      rowsOf(y!.shape, (first, end) => {
        let dot = 0;
        for (let i = first; i < end; i++) dot += y!.data[i]! * dy!.data[i]!;
        for (let i = first; i < end; i++) dx[i] = y!.data[i]! * (dy!.data[i]! - dot);
      });
      return [dx];
    },
    cases: [
      { name: 'odd rows', inputs: [{ shape: [3, 5, 37] }, { shape: [3, 5, 37] }], attrs: {}, tolerance: 1e-5 },
      { name: 'one column', inputs: [{ shape: [7, 1] }, { shape: [7, 1] }], attrs: {} },
      { name: 'one vector more than a workgroup', inputs: [{ shape: [17, 260] }, { shape: [17, 260] }], attrs: {}, tolerance: 1e-5 },
      { name: 'attention scores at 16×16', inputs: [{ shape: [8, 256, 256] }, { shape: [8, 256, 256] }], attrs: {}, tolerance: 1e-5, bench: true },
    ],
  }),
];
