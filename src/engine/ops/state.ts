/** Ops that write a state or parameter in place. They have no outputs; ops that read the tensor afterwards see the new contents. */
import shader from '../../../shaders/state.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, sameShape, showShape } from '../shape';
import { emitCopy, emitZeros } from './copy';

const grad = { notDifferentiable: 'it writes in place' } as const;

function checkDestination(op: string, destination: Tensor, source?: Tensor): void {
  check(destination.kind === 'state' || destination.kind === 'parameter', 'shape', () => `${op}: ${destination} is a ${destination.kind}; only states and parameters are written in place`);
  check(source !== destination, 'shape', () => `${op}: ${destination} is both source and destination`);
}

function checkSameShape([destination, source]: readonly TensorSpec[]): void {
  check(sameShape(destination!.shape, source!.shape), 'shape', () => `destination ${showShape(destination!.shape)} and source ${showShape(source!.shape)} must have the same shape`);
}

const incrementOp = defineOp<{ by: number }>({
  name: 'increment',
  doc: 'state += by, for u32 counters; wraps at 2³².',
  infer([state], { by }) {
    check(state!.dtype === 'u32', 'shape', () => `a counter is u32, not ${state!.dtype}`);
    check(Number.isInteger(by), 'input', () => `by ${by} is no integer`);
    return [];
  },
  lower({ inputs: [state], attrs: { by }, dispatch }) {
    const count = numel(state!.shape);
    dispatch({ shader: { file: 'state.wgsl', text: shader }, entry: 'increment', bindings: { counter: state! }, params: { count, by: by >>> 0, scale: 1 }, workgroups: Math.ceil(count / 64) });
  },
  flops: () => 0,
  grad,
  mutates: [0],
});

const copyIntoOp = defineOp<object>({
  name: 'copy_into',
  doc: 'destination = source, as bits.',
  infer(inputs) {
    checkSameShape(inputs);
    check(inputs[0]!.dtype === inputs[1]!.dtype, 'shape', () => `destination is ${inputs[0]!.dtype} and source ${inputs[1]!.dtype}: cast the source`);
    return [];
  },
  lower(ctx) {
    const [destination, source] = ctx.inputs;
    emitCopy(ctx, { from: source!, to: destination!, dims: [numel(source!.shape)], fromStrides: [1], toStrides: [1] });
  },
  flops: () => 0,
  grad,
  mutates: [0],
});

const accumulateIntoOp = defineOp<{ scale: number }>({
  name: 'accumulate_into',
  doc: 'destination += scale · source, for an f32 destination: gradients of several micro-batches.',
  infer(inputs) {
    checkSameShape(inputs);
    check(inputs[0]!.dtype === 'f32', 'shape', () => `sums are kept in f32, not ${inputs[0]!.dtype}`);
    return [];
  },
  lower({ inputs: [destination, source], attrs: { scale }, dispatch }) {
    const width = numel(source!.shape) % 4 === 0 ? 4 : 1;
    const count = numel(source!.shape) / width;
    dispatch({
      shader: { file: 'state.wgsl', text: shader },
      entry: 'accumulate',
      prologue: { V: vectorType('f32', width), X: vectorType(source!.dtype, width) },
      bindings: { destination: destination!, source: source! },
      params: { count, by: 0, scale },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: ([destination]) => 2 * numel(destination!.shape),
  grad,
  mutates: [0],
});

const zeroOp = defineOp<object>({
  name: 'zero',
  doc: 'destination = 0.',
  infer: () => [],
  lower: (ctx) => emitZeros(ctx, ctx.inputs[0]!),
  flops: () => 0,
  grad,
  mutates: [0],
});

/** `destination` = 0: gradients before the next accumulation. */
export function zero(destination: Tensor): void {
  checkDestination('zero', destination);
  destination.graph.add(zeroOp, [destination], {});
}

/** `state` += `by` for a u32 counter (training step, diffusion step); negative `by` counts down. */
export function increment(state: Tensor, by = 1): void {
  checkDestination('increment', state);
  state.graph.add(incrementOp, [state], { by });
}

/** `destination` = `source`: the next sample takes the place of the sample. */
export function copyInto(destination: Tensor, source: Tensor): void {
  checkDestination('copyInto', destination, source);
  destination.graph.add(copyIntoOp, [destination, source], {});
}

/** `destination` += `scale` · `source`. */
export function accumulateInto(destination: Tensor, source: Tensor, scale = 1): void {
  checkDestination('accumulateInto', destination, source);
  destination.graph.add(accumulateIntoOp, [destination, source], { scale });
}
