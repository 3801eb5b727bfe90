import guidanceShader from '../../../shaders/guidance.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { numel, showShape } from '../shape';

const guidanceOp = defineOp<{ channels: number }>({
  name: 'guidance',
  doc: 'Classifier-free guidance (Ho & Salimans 2022): u + scale · (c − u) for a batch [u; c] of 2N. Channels after the first `channels` (a predicted variance) are those of c.',
  infer([x, scale], { channels }) {
    check(x!.shape.length >= 2 && x!.shape[0]! % 2 === 0, 'shape', () => `${showShape(x!.shape)} must be [2N, C, …]: the unconditional half, then the conditional one`);
    check(channels >= 1 && channels <= x!.shape[1]!, 'shape', () => `${channels} channels cannot be guided in ${showShape(x!.shape)}`);
    check(numel(scale!.shape) === 1, 'shape', () => `the scale ${showShape(scale!.shape)} must have one element`);
    return [{ shape: [x!.shape[0]! / 2, ...x!.shape.slice(1)], dtype: 'f32' }];
  },
  lower({ inputs: [x, scale], outputs: [y], attrs: { channels }, dispatch }) {
    const size = numel(y!.shape.slice(1));
    const count = numel(y!.shape);
    dispatch({
      shader: { file: 'guidance.wgsl', text: guidanceShader },
      entry: 'forward',
      prologue: { X: x!.dtype },
      bindings: { x: x!, scale: scale!, y: y! },
      params: { count, size, guided: (size / y!.shape[1]!) * channels },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: (_, [y]) => 3 * numel(y!.shape),
  grad: { notDifferentiable: 'guidance belongs to sampling' },
});

/**
 * Classifier-free guidance: `x` [2N, C, …] holds the unconditional predictions, then the conditional ones; `scale` [1] is 1 for no guidance.
 * Returns [N, C, …], f32. Only the first `channels` channels are guided, the others come from the conditional half.
 */
export const guidance = (x: Tensor, scale: Tensor, channels = x.shape[1]!): Tensor => x.graph.add1(guidanceOp, [x, scale], { channels });

export const tests = opTests({
  op: guidanceOp,
  reference([x, scale], { channels }) {
    const [n, c] = x!.shape as [number, number];
    const inner = numel(x!.shape.slice(2));
    const half = (n / 2) * c * inner;
    return [
      Float64Array.from({ length: half }, (_, i) => {
        const [u, v] = [x!.data[i]!, x!.data[half + i]!];
        return Math.floor(i / inner) % c < channels ? u + scale!.data[0]! * (v - u) : v;
      }),
    ];
  },
  cases: [
    { name: 'all channels', inputs: [{ shape: [4, 3, 5, 7] }, { shape: [1], dtype: 'f32', fill: { values: [2.5] } }], attrs: { channels: 3 } },
    { name: 'with a variance half', inputs: [{ shape: [6, 6, 4, 4] }, { shape: [1], dtype: 'f32', fill: { values: [-0.5] } }], attrs: { channels: 3 } },
    { name: 'one element', inputs: [{ shape: [2, 1] }, { shape: [1], dtype: 'f32' }], attrs: { channels: 1 } },
  ],
});
