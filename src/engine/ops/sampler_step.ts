/**
 * Executing one step of a sampler's coefficient table on the GPU: `samplerInput` before the model, `samplerStep` after it.
 * The table is what sampler/program.ts packs: [steps, 4 · columns + 8]; which row it is says a counter that the step advances, so
 * replaying the same dispatches walks the table.
 */
import inputShader from '../../../shaders/sampler_input.wgsl';
import stepShader from '../../../shaders/sampler_step.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, type LowerContext } from '../op';
import { numel, sameShape, showShape, type Shape } from '../shape';
import { quantileAbs } from './quantile';
import { increment } from './state';

/** Scalars at the end of a row. */
const scalars = 8;
/** Columns that are no slots: sample, output, bounded x0, noise. */
const ownColumns = 4;

const columnsOf = (table: TensorSpec): number => (table.shape[1]! - scalars) / 4;

function checkTable(table: TensorSpec, counter: TensorSpec): void {
  const columns = columnsOf(table);
  check(table.shape.length === 2 && Number.isInteger(columns) && columns >= ownColumns, 'shape', () => `the table ${showShape(table.shape)} must be [steps, 4 · columns + ${scalars}]`);
  check(sameShape(counter.shape, [1]) && counter.dtype === 'u32', 'shape', () => `the counter must be u32 [1], not ${counter.dtype} ${showShape(counter.shape)}`);
}

const notDifferentiable = 'a sampler step changes its sample in place; samplers are not differentiated';

const samplerInputOp = defineOp<{ copies: number }>({
  name: 'sampler_input',
  doc: 'What the model is given in the current step of a sampler table: inputScale · sample and the time step, `copies` times along the batch, and the number of the random draw (step + 1).',
  infer([table, counter, sample], { copies }) {
    checkTable(table!, counter!);
    const [n, ...image] = sample!.shape as [number, ...number[]];
    return [
      { shape: [copies * n, ...image], dtype: 'f32' },
      { shape: [copies * n], dtype: 'f32' },
      { shape: [1], dtype: 'u32' },
    ];
  },
  lower({ inputs: [table, counter, sample], outputs: [input, timestep, draw], attrs: { copies }, dispatch }) {
    const count = numel(sample!.shape);
    dispatch({
      shader: { file: 'sampler_input.wgsl', text: inputShader },
      entry: 'forward',
      prologue: { COLUMNS: `${columnsOf(table!)}u`, COPIES: `${copies}u` },
      bindings: { table: table!, counter: counter!, sample: sample!, input: input!, timestep: timestep!, draw: draw! },
      params: { count, images: sample!.shape[0]!, steps: table!.shape[0]! },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: (_, [input]) => numel(input!.shape),
  grad: { notDifferentiable },
});

interface StepAttrs {
  readonly varianceHalf: 'unused' | 'learned_range' | 'learned';
  readonly noise: 'none' | 'drawn' | 'recorded';
  readonly clip?: number;
  readonly threshold: boolean;
  /** Whether the predicted x0 is wanted as an output. */
  readonly predictX0: boolean;
}

/** [table, counter, sample, slots, output, noise?, thresholds?]. */
type StepInputs = readonly [table: Tensor, counter: Tensor, sample: Tensor, slots: Tensor, output: Tensor, ...rest: Tensor[]];

const slotsOf = (slots: TensorSpec): number => (slots.shape.length === 2 ? slots.shape[0]! : 0);

function checkStep([table, counter, sample, slots, output, ...rest]: readonly TensorSpec[], { varianceHalf, noise, threshold }: StepAttrs): void {
  checkTable(table!, counter!);
  const [n, c, ...image] = sample!.shape as [number, number, ...number[]];
  const out = output!.shape;
  const doubled = out[1] === 2 * c;
  check(sample!.dtype === 'f32' && sample!.shape.length >= 2, 'shape', () => `the sample must be f32 [N, C, …], not ${sample!.dtype} ${showShape(sample!.shape)}`);
  check(
    sameShape(out, sample!.shape) || sameShape(out, [n, 2 * c, ...image]),
    'shape',
    () => `the model's output ${showShape(out)} must have the sample's shape ${showShape(sample!.shape)}, or twice its channels where it also predicts a variance`,
  );
  check(doubled || varianceHalf === 'unused', 'shape', () => `variance_type "${varianceHalf}" needs a model with twice the sample's channels (prediction, then variance), not ${showShape(out)}`);
  const count = numel(sample!.shape);
  check(slots!.shape.length === 1 || (slots!.shape.length === 2 && slots!.shape[1] === count && slots!.shape[0]! <= columnsOf(table!) - ownColumns), 'shape', () => `the slots ${showShape(slots!.shape)} must be [at most ${columnsOf(table!) - ownColumns}, ${count}], or [1] for none`);
  const expected: Shape[] = [];
  if (noise === 'drawn') expected.push(sample!.shape);
  if (noise === 'recorded') expected.push([rest[0]?.shape[0] ?? 1, ...sample!.shape]);
  if (threshold) expected.push([n]);
  check(rest.length === expected.length && rest.every((t, i) => sameShape(t.shape, expected[i]!)), 'shape', () => `noise and thresholds are ${rest.map((t) => showShape(t.shape)).join(', ') || 'absent'} but must be ${expected.map(showShape).join(', ') || 'absent'}`);
}

/** Dispatches `predict` or `update`, which share their bindings. */
function emitStep({ inputs, attrs, dispatch, temp }: LowerContext<StepAttrs>, entry: 'predict' | 'update', x0: Tensor | undefined): void {
  const [table, counter, sample, slots, output, ...rest] = inputs as unknown as StepInputs;
  const [n, c] = sample.shape as [number, number];
  const count = numel(sample.shape);
  const { varianceHalf, noise, clip, threshold } = attrs;
  // What a program does without is never read, yet the kernel's binding wants a buffer.
  const noiseBinding = noise === 'none' ? temp('no noise', [4]) : rest[0]!;
  dispatch({
    shader: { file: 'sampler_step.wgsl', text: stepShader },
    entry,
    prologue: {
      OUTPUT: output.dtype,
      COLUMNS: `${columnsOf(table)}u`,
      SLOTS: `${slotsOf(slots)}u`,
      NOISE: noise !== 'none',
      RECORDED: noise === 'recorded',
      VARIANCE: varianceHalf === 'learned_range' ? 'LEARNED_RANGE' : varianceHalf === 'learned' ? 'LEARNED' : '0u',
      BOUND: threshold ? 'QUANTILE' : clip !== undefined ? 'CLIP' : '0u',
      WRITE_X0: x0 !== undefined,
    },
    bindings: {
      table,
      counter,
      sample,
      output,
      noise: noiseBinding,
      slots,
      x0: x0 ?? temp('no x0', [4]),
      ...(entry === 'update' && { thresholds: threshold ? rest[rest.length - 1]! : temp('no thresholds', [4]) }),
    },
    params: { count, size: count / n, steps: table.shape[0]!, output_size: (count / n) * (output.shape[1]! / c), range: clip ?? 0 },
    workgroups: Math.ceil(count / 64),
  });
}

const stepFlops = ([table, , sample]: readonly TensorSpec[]): number => 8 * columnsOf(table!) * numel(sample!.shape);

const samplerPredictOp = defineOp<StepAttrs>({
  name: 'sampler_predict',
  doc: 'The predicted x0 of the current step of a sampler table before it is bounded: what dynamic thresholding takes its quantile of.',
  infer(specs, attrs) {
    checkStep(specs, attrs);
    return [{ shape: specs[2]!.shape, dtype: 'f32' }];
  },
  lower: (ctx) => emitStep(ctx, 'predict', ctx.outputs[0]),
  flops: (inputs) => stepFlops(inputs) / 4,
  grad: { notDifferentiable },
});

const samplerStepOp = defineOp<StepAttrs>({
  name: 'sampler_step',
  doc: 'One step of a sampler table: bounds the predicted x0, replaces the sample and the slots by linear combinations of sample, output, x0, noise and slots. Mutates sample and slots.',
  infer(specs, attrs) {
    checkStep(specs, attrs);
    return attrs.predictX0 ? [{ shape: specs[2]!.shape, dtype: 'f32' }] : [];
  },
  mutates: [2, 3],
  lower: (ctx) => emitStep(ctx, 'update', ctx.outputs[0]),
  flops: stepFlops,
  grad: { notDifferentiable },
});

/** The states of a run: what a step reads and leaves for the next one. */
export interface SamplerState {
  /** f32 [steps, 4 · columns + 8], see sampler/program.ts. */
  readonly table: Tensor;
  /** u32 [1]: the row of the next step. */
  readonly counter: Tensor;
  /** f32 [N, C, H, W]. */
  readonly sample: Tensor;
  /** f32 [slots, N·C·H·W], or [1] for a program without. Must be finite when a run starts: what a slot held before counts 0 times. */
  readonly slots: Tensor;
}

/** What the model gets in this step: input [copies·N, C, H, W], timestep f32 [copies·N]; and for noise, draw u32 [1] (the step's number + 1). */
export function samplerInput({ table, counter, sample }: SamplerState, copies = 1): { input: Tensor; timestep: Tensor; draw: Tensor } {
  const [input, timestep, draw] = table.graph.add(samplerInputOp, [table, counter, sample], { copies });
  return { input: input!, timestep: timestep!, draw: draw! };
}

export interface SamplerStepOptions {
  /** The model's output [N, C, H, W], or [N, 2C, H, W] with a variance half; f32 or f16. */
  readonly output: Tensor;
  /** Standard normal: `drawn` for this step [N, C, H, W], or `recorded` for the whole run [draws, N, C, H, W]; absent for programs without. */
  readonly noise?: { readonly kind: 'drawn' | 'recorded'; readonly tensor: Tensor };
  readonly varianceHalf: 'unused' | 'learned_range' | 'learned';
  readonly bound: { readonly kind: 'none' } | { readonly kind: 'clip'; readonly range: number } | { readonly kind: 'quantile'; readonly ratio: number; readonly maxValue: number };
  /** Also return the predicted x0 [N, C, H, W], bounded. */
  readonly predictX0?: boolean;
}

/** Appends one step: the update of sample and slots, and of the counter. */
export function samplerStep(state: SamplerState, options: SamplerStepOptions): { x0: Tensor | undefined } {
  const { table, counter, sample, slots } = state;
  const { output, noise, bound, varianceHalf, predictX0 = false } = options;
  const { graph } = table;
  const inputs = [table, counter, sample, slots, output, ...(noise ? [noise.tensor] : [])];
  const attrs: StepAttrs = { varianceHalf, noise: noise?.kind ?? 'none', threshold: false, predictX0, ...(bound.kind === 'clip' && { clip: bound.range }) };
  // Imagen (Saharia et al. 2022), section 2.3: never below 1, so that images in range stay as they are.
  const thresholds = bound.kind === 'quantile' ? [quantileAbs(graph.add1(samplerPredictOp, inputs, attrs), bound.ratio, 1, bound.maxValue)] : [];
  const [x0] = graph.add(samplerStepOp, [...inputs, ...thresholds], { ...attrs, threshold: thresholds.length > 0 });
  increment(counter);
  return { x0 };
}
