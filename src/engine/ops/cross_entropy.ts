import shader from '../../../shaders/cross_entropy.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type LowerContext, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, sameShape, showShape } from '../shape';
import { rowKernel } from './row_kernel';

type NoAttrs = Record<never, never>;

function checkInputs([logits, labels]: readonly TensorSpec[]): void {
  check(logits!.shape.length === 2, 'shape', () => `logits ${showShape(logits!.shape)} must be [N,K]`);
  check(labels!.dtype === 'i32' || labels!.dtype === 'u32', 'shape', () => `labels must be i32 or u32 class indices, not ${labels!.dtype}`);
  check(sameShape(labels!.shape, [logits!.shape[0]!]), 'shape', () => `labels ${showShape(labels!.shape)} must be [N] for logits ${showShape(logits!.shape)}`);
}

function lower({ inputs: [logits, labels, dy], outputs: [result], profile, variant, dispatch }: LowerContext<NoAttrs>): void {
  const [rows, classes] = logits!.shape as [number, number];
  const kernel = rowKernel(rows, classes, profile.kind, variant);
  dispatch({
    shader: { file: 'cross_entropy.wgsl', text: shader },
    entry: dy ? `${kernel.entry}_grad` : kernel.entry,
    prologue: { X: vectorType(logits!.dtype, 1), I: vectorType(labels!.dtype, 1), ...(dy && { DY: vectorType(dy.dtype, 1) }) },
    bindings: { logits: logits!, labels: labels!, ...(dy ? { dy, dlogits: result! } : { loss: result! }) },
    params: { rows, classes },
    workgroups: kernel.workgroups,
  });
}

const crossEntropyOp = defineOp<NoAttrs>({
  name: 'cross_entropy',
  doc: 'log Σ exp(logits) − logits[label] for each row of logits [N,K] with class indices [N]: [N] f32 (torch.nn.functional.cross_entropy, reduction "none"). A label outside 0…K−1 is ignored, as torch’s ignore_index: loss 0, no gradient.',
  infer(inputs) {
    checkInputs(inputs);
    return [{ shape: inputs[1]!.shape, dtype: 'f32' }];
  },
  variants: ['direct', 'tiled'],
  lower,
  flops: ([logits]) => 7 * numel(logits!.shape),
  grad: ({ graph, inputs: [logits, labels], outputGrads }) => [graph.add1(crossEntropyGradOp, [logits!, labels!, outputGrads[0]!], {}), undefined],
  integerInputs: [1],
});

const crossEntropyGradOp = defineOp<NoAttrs>({
  name: 'cross_entropy_grad',
  doc: 'dlogits = dy·(softmax(logits) − one_hot(label)) by rows, from logits [N,K], labels [N] and dy [N]; 0 where the label is ignored.',
  infer(inputs) {
    checkInputs(inputs);
    check(sameShape(inputs[2]!.shape, inputs[1]!.shape), 'shape', () => `dy ${showShape(inputs[2]!.shape)} must be [N] as labels ${showShape(inputs[1]!.shape)}`);
    return [{ shape: inputs[0]!.shape, dtype: inputs[0]!.dtype }];
  },
  variants: ['direct', 'tiled'],
  lower,
  flops: ([logits]) => 9 * numel(logits!.shape),
  grad: { notDifferentiable: 'gradients of gradients are not built' },
  integerInputs: [1],
});

/** Cross entropy of `logits` [N,K] with `labels` i32 or u32 [N]: f32 [N]. A label outside 0…K−1 is ignored: loss 0, no gradient. */
export const crossEntropy = (logits: Tensor, labels: Tensor): Tensor => logits.graph.add1(crossEntropyOp, [logits, labels], {});

/** Calls `each` with every row's place, label (undefined if ignored), maximum and Σ exp(x − maximum). */
function eachRow(logits: RefTensor, labels: RefTensor, each: (n: number, first: number, label: number | undefined, top: number, total: number) => void): void {
  const [rows, classes] = logits.shape as [number, number];
  for (let n = 0; n < rows; n++) {
    const row = logits.data.subarray(n * classes, (n + 1) * classes);
    const top = row.reduce((m, v) => Math.max(m, v), -Infinity);
    const label = labels.data[n]!;
    each(n, n * classes, label >= 0 && label < classes ? label : undefined, top, row.reduce((sum, v) => sum + Math.exp(v - top), 0));
  }
}

export const tests: OpTests<never>[] = [
  opTests<NoAttrs>({
    op: crossEntropyOp,
    reference([logits, labels]) {
      const loss = new Float64Array(labels!.data.length);
      eachRow(logits!, labels!, (n, first, label, top, total) => {
        if (label !== undefined) loss[n] = top - logits!.data[first + label]! + Math.log(total);
      });
      return [loss];
    },
    cases: [
      { name: 'odd sizes', inputs: [{ shape: [13, 7] }, { shape: [13], dtype: 'i32', fill: { int: 7 } }], attrs: {} },
      { name: 'one class', inputs: [{ shape: [3, 1] }, { shape: [3], dtype: 'u32', fill: { int: 1 } }], attrs: {} },
      { name: 'more classes than a workgroup', inputs: [{ shape: [5, 1009], fill: { mean: 0, std: 3 } }, { shape: [5], dtype: 'u32', fill: { int: 1009 } }], attrs: {}, tolerance: 1e-5 },
      { name: 'far from zero', inputs: [{ shape: [4, 12], fill: { mean: 30000, std: 5 } }, { shape: [4], dtype: 'i32', fill: { int: 12 } }], attrs: {}, skipGrad: true },
      { name: 'sure of itself, right and wrong', inputs: [{ shape: [2, 3], dtype: 'f32', fill: { values: [300, 0, -300, 300, 0, -300] } }, { shape: [2], dtype: 'i32', fill: { values: [0, 2] } }], attrs: {} },
      { name: 'labels outside', inputs: [{ shape: [5, 4] }, { shape: [5], dtype: 'i32', fill: { values: [-1, 4, 3, -100, 2147483647] } }], attrs: {} },
      { name: 'digit classifier', inputs: [{ shape: [100, 10] }, { shape: [100], dtype: 'i32', fill: { int: 10 } }], attrs: {}, bench: true },
    ],
  }),
  opTests<NoAttrs>({
    op: crossEntropyGradOp,
    reference([logits, labels, dy]) {
      const out = new Float64Array(logits!.data.length);
      eachRow(logits!, labels!, (n, first, label, top, total) => {
        if (label === undefined) return;
        for (let k = 0; k < logits!.shape[1]!; k++) out[first + k] = dy!.data[n]! * (Math.exp(logits!.data[first + k]! - top) / total - (k === label ? 1 : 0));
      });
      return [out];
    },
    cases: [
      { name: 'odd sizes', inputs: [{ shape: [17, 7] }, { shape: [17], dtype: 'i32', fill: { int: 7 } }, { shape: [17] }], attrs: {} },
      { name: 'more classes than a workgroup', inputs: [{ shape: [5, 131] }, { shape: [5], dtype: 'u32', fill: { int: 131 } }, { shape: [5] }], attrs: {}, tolerance: 1e-5 },
      { name: 'labels outside', inputs: [{ shape: [5, 4] }, { shape: [5], dtype: 'i32', fill: { values: [-1, 4, 3, -100, 2147483647] } }, { shape: [5] }], attrs: {} },
    ],
  }),
] as unknown as OpTests<never>[];
