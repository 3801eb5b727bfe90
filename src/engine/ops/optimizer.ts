/**
 * Optimizer steps over whole slabs of weights (see model/parameters.ts): `optimizerDecide` once per step, `optimizerUpdate` once per slab.
 * Everything they decide stays on the GPU.
 */
import optimizerShader from '../../../shaders/optimizer.wgsl';
import { BruitError } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp } from '../op';
import { numel, showShape } from '../shape';

/** Columns of the `control` state. */
export const controlSlots = { learningRate: 0, correction1: 1, correction2: 2, emaDecay: 3, factor: 4, update: 5, lossScale: 6 } as const;
export const controlSize = 8;
/** Slots of the `counters` state. */
export const counterSlots = { steps: 0, updates: 1, sinceScaleChange: 2, skipped: 3 } as const;

export interface OptimizerAttrs {
  readonly kind: 'adamw' | 'sgd';
  /** β1 of AdamW, momentum of SGD. */
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** Global norm to clip to; 0 for no clipping. */
  readonly maxNorm: number;
  /** Updates without overflow after which the loss scale doubles; 0 keeps it. */
  readonly growthInterval: number;
  /** 1 / number of accumulated micro-batches. */
  readonly gradientScale: number;
}

const shader = { file: 'optimizer.wgsl', text: optimizerShader };

const uniformOf = (a: OptimizerAttrs, count: number, rows: number, ring: number) => ({
  count,
  table_rows: rows,
  ring,
  max_norm: a.maxNorm,
  beta1: a.beta1,
  beta2: a.beta2,
  eps: a.eps,
  weight_decay: a.weightDecay,
  growth_interval: a.growthInterval,
  gradient_scale: a.gradientScale,
});

const notDifferentiable = 'an optimizer step changes weights; gradients end before it';

function expectShapes(specs: readonly TensorSpec[], names: readonly string[], shapes: readonly (readonly (number | string)[])[]): void {
  specs.forEach((s, i) => {
    const want = shapes[i]!;
    if (s.shape.length !== want.length || want.some((d, k) => typeof d === 'number' && d !== s.shape[k])) throw new BruitError('shape', `${names[i]} ${showShape(s.shape)} must be [${want.join(',')}]`);
  });
}

export const optimizerDecideOp = defineOp<OptimizerAttrs>({
  name: 'optimizer_decide',
  doc: 'Reads loss and squared gradient norm; decides learning rate, clipping, skipping of a non-finite step and the loss scale; records metrics. Mutates counters, control and metrics.',
  infer(specs) {
    expectShapes(specs, ['table', 'counters', 'control', 'loss', 'square norm', 'metrics'], [['updates', 4], [4], [controlSize], [1], [1], ['rows', 4]]);
    return [];
  },
  mutates: [1, 2, 5],
  lower({ inputs: [table, counters, control, loss, squareNorm, metrics], attrs, dispatch }) {
    dispatch({
      shader,
      entry: 'decide',
      bindings: { table: table!, counters: counters!, control: control!, loss: loss!, square_norm: squareNorm!, metrics: metrics! },
      params: uniformOf(attrs, 0, table!.shape[0]!, metrics!.shape[0]!),
      workgroups: 1,
    });
  },
  flops: () => 20,
  grad: { notDifferentiable },
});

export const optimizerUpdateOp = defineOp<OptimizerAttrs>({
  name: 'optimizer_update',
  doc: 'AdamW (Loshchilov & Hutter 2019) or SGD, and the exponential moving average, over one slab. Mutates weights, moments and EMA.',
  infer(specs) {
    const n = specs[0]!.shape[0]!;
    if (n % 4) throw new BruitError('shape', `slabs hold a multiple of 4 weights, got ${n}`);
    expectShapes(specs, ['weight', 'gradient', 'moment1', 'moment2', 'ema', 'control'], [[n], [n], [n], [n], [n], [controlSize]]);
    return [];
  },
  mutates: [0, 2, 3, 4],
  lower({ inputs: [weight, gradient, moment1, moment2, ema, control], attrs, dispatch }) {
    const count = weight!.shape[0]! / 4;
    dispatch({
      shader,
      entry: attrs.kind,
      bindings: { weight: weight!, gradient: gradient!, moment1: moment1!, ...(attrs.kind === 'adamw' && { moment2: moment2! }), ema: ema!, decided: control! },
      params: uniformOf(attrs, count, 1, 1),
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: ([w]) => numel(w!.shape) * 18,
  grad: { notDifferentiable },
});

export interface OptimizerState {
  /** Per update: learning rate, 1/(1−β1ⁿ), 1/√(1−β2ⁿ), EMA decay. f32 [updates, 4]. */
  readonly table: Tensor;
  /** u32 [4], see {@link counterSlots}. */
  readonly counters: Tensor;
  /** f32 [8], see {@link controlSlots}; slot 6 starts as the loss scale. */
  readonly control: Tensor;
  /** f32 [rows, 4]: loss, gradient norm, learning rate, loss scale (0 where skipped) of step s in row s mod rows. */
  readonly metrics: Tensor;
}

export interface SlabState {
  readonly weight: Tensor;
  readonly gradient: Tensor;
  readonly moment1: Tensor;
  readonly moment2: Tensor;
  readonly ema: Tensor;
}

/** Appends one optimizer step to the graph. `loss` and `squareNorm` have shape [1]; gradients are those of loss · loss scale. */
export function optimizerStep(state: OptimizerState, slabs: readonly SlabState[], loss: Tensor, squareNorm: Tensor, attrs: OptimizerAttrs): void {
  const { graph } = loss;
  graph.add(optimizerDecideOp, [state.table, state.counters, state.control, loss, squareNorm, state.metrics], attrs);
  for (const s of slabs) graph.add(optimizerUpdateOp, [s.weight, s.gradient, s.moment1, s.moment2, s.ema, state.control], attrs);
}
