import { BruitError } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { numel, sameShape, showShape, type Shape } from '../shape';

/** The same elements in the same order under another shape: a view, no dispatch. */
export const reshapeOp = defineOp<{ shape: Shape }>({
  name: 'reshape',
  doc: 'The same elements in the same (row-major) order under another shape. A view: costs nothing.',
  infer([x], { shape }) {
    if (numel(shape) !== numel(x!.shape)) throw new BruitError('shape', `${showShape(x!.shape)} has ${numel(x!.shape)} elements, ${showShape(shape)} wants ${numel(shape)}`);
    return [{ shape, dtype: x!.dtype }];
  },
  view: true,
  lower() {},
  flops: () => 0,
  grad: ({ inputs, outputGrads }) => [reshape(outputGrads[0]!, inputs[0]!.shape)],
});

/** x under another shape; one dimension may be −1. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.filter((d) => d !== -1).reduce((a, b) => a * b, 1);
  const full = shape.map((d) => (d === -1 ? numel(x.shape) / known : d));
  return sameShape(full, x.shape) ? x : x.graph.add1(reshapeOp, [x], { shape: full });
}

export const tests = opTests({
  op: reshapeOp,
  reference: ([x]) => [x!.data.slice()],
  cases: [{ name: 'merge and split', inputs: [{ shape: [2, 3, 10] }], attrs: { shape: [6, 5, 2] } }],
});
