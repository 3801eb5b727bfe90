/**
 * A sampler compiled to numbers. Every scheduler here is linear in (sample, model output, history, noise) apart from two element-wise operations:
 * bounding the predicted x0, and a learned standard deviation. So `createSampler` turns a scheduler_config.json into a {@link SamplerProgram}, a
 * table of coefficients with one row set per model evaluation, and one kernel executes any of them with nothing read back.
 *
 * **The arithmetic of a step.** With `sample` and the slots as the previous step left them, `output` = model(inputScale * sample, timestep), and
 * `noise` = draw number `noiseIndex` (standard normal; 0 when noiseIndex is -1), element by element:
 *
 *     z    = std * noise                    std = 1, exp(logStd[0] + logStd[1] * v) or sqrt(v); v: the output's variance half
 *     x0   = bound( predX0 . [sample, output, 0, z, slots...] )
 *     next = next  . [sample, output, x0, z, slots...]
 *     slot[k] = value . [sample, output, x0, z, slots...]   for each of `store`, all read before any is written
 *
 * `x0` is also what a preview shows. A program without a bound never uses the x0 column (it is folded into the others in f64, which keeps the
 * small differences of almost equal large numbers out of f32), so its kernel need not compute x0 unless somebody looks at it.
 */
import { BruitError } from '../engine/errors';

/** Most state tensors beside the sample that a program may keep. */
export const MAX_SLOTS = 6;
/** Columns of a coefficient row: sample, output, bounded x0, z, then the slots. */
export const COLUMNS = 4 + MAX_SLOTS;

/** A linear combination: coefficients of [sample, output, x0, z, slot 0, ... slot 5]. */
export type Linear = Float64Array;

const unit = (column: number): Linear => new Float64Array(COLUMNS).fill(1, column, column + 1);
/** The sample that the step is given. */
export const SAMPLE = unit(0);
/** What the model returned (its first half where it also predicts a variance). */
export const OUTPUT = unit(1);
/** The bounded predicted x0. */
export const X0 = unit(2);
/** The step's noise, times the learned standard deviation if there is one. */
export const NOISE = unit(3);

/** State tensor `k` as the previous step left it. */
export function slot(k: number): Linear {
  if (k >= MAX_SLOTS) throw new BruitError('config', `this sampler would need more than ${MAX_SLOTS} state tensors; choose a lower order`);
  return unit(4 + k);
}

/** Sum of coefficient * combination. A zero coefficient drops its term, so that 0 * Infinity does not poison a sum. */
export function combine(...terms: readonly (readonly [coefficient: number, of: Linear])[]): Linear {
  const sum = new Float64Array(COLUMNS);
  for (const [coefficient, of] of terms) {
    if (coefficient === 0) continue;
    for (let i = 0; i < COLUMNS; i++) if (of[i] !== 0) sum[i]! += coefficient * of[i]!;
  }
  return sum;
}

/**
 * What is done to the predicted x0. `clip`: to [-range, range]. `quantile`: dynamic thresholding (Imagen, section 2.3), per image
 * s = quantile(|x0|, ratio) by linear interpolation between ranks, clamped to [1, maxValue]; x0 = clamp(x0, -s, s) / s.
 */
export type Bound =
  | { readonly kind: 'none' }
  | { readonly kind: 'clip'; readonly range: number }
  | { readonly kind: 'quantile'; readonly ratio: number; readonly maxValue: number };

/** The predicted x0 as later terms should use it: itself, or the X0 column if the kernel bounds it first. */
export const bounded = (bound: Bound, x0: Linear): Linear => (bound.kind === 'none' ? x0 : X0);

/** One call of a diffusers scheduler's `step`: one model evaluation and the update after it. See the head of this file for the arithmetic. */
export interface SamplerStep {
  /** Time step that the model is given; fractional for some spacings. */
  readonly timestep: number;
  /** Factor on the sample before the model sees it (diffusers' `scale_model_input`). */
  readonly inputScale: number;
  /** Predicted x0 before it is bounded. */
  readonly predX0: Linear;
  readonly next: Linear;
  /** Slots written by this step, at most two. */
  readonly store: readonly { readonly slot: number; readonly value: Linear }[];
  /** Which of the run's normal draws this step takes, or -1. A draw may be taken and multiplied by 0, as diffusers' Euler does. */
  readonly noiseIndex: number;
  /** learned_range only: log of the standard deviation = logStd[0] + logStd[1] * v. */
  readonly logStd: readonly [offset: number, slope: number];
}

/**
 * How the second half of the model's channels, if it has one, is read: `unused` (dropped), `learned_range` (v in [-1, 1] mixes two log-variances) or
 * `learned` (v is the variance itself; negative values count as 0).
 */
export type VarianceHalf = 'unused' | 'learned_range' | 'learned';

export interface SamplerProgram {
  /** diffusers' class name. */
  readonly className: string;
  readonly steps: readonly SamplerStep[];
  /** The start sample is standard normal noise times this. */
  readonly initNoiseSigma: number;
  /** diffusers' `scheduler.timesteps`: one per step, and before them those of steps that are left out (`begin`). */
  readonly timesteps: readonly number[];
  /** diffusers' `scheduler.sigmas`, where the class has them. */
  readonly sigmas: readonly number[] | null;
  readonly bound: Bound;
  readonly varianceHalf: VarianceHalf;
  /** State tensors used. */
  readonly slots: number;
  /** Normal draws that a run consumes after the start noise. */
  readonly noiseDraws: number;
}

/** A step as the schedulers write it; what is absent is: input not scaled, nothing stored, no noise drawn. */
export interface StepDraft {
  timestep: number;
  inputScale?: number;
  predX0: Linear;
  next: Linear;
  store?: readonly { slot: number; value: Linear }[];
  drawsNoise?: boolean;
  logStd?: readonly [number, number];
}

/**
 * Checks and numbers the drafted steps.
 * @throws BruitError `config` if a coefficient is not finite: the configuration asks for something undefined, such as x0 from noise at zero SNR.
 */
export function finishProgram(
  className: string,
  drafts: readonly StepDraft[],
  rest: { initNoiseSigma?: number; sigmas?: ArrayLike<number> | null; bound?: Bound; varianceHalf?: VarianceHalf; begin?: number | undefined },
): SamplerProgram {
  let noiseDraws = 0;
  let slots = 0;
  const steps = drafts.slice(rest.begin).map((draft): SamplerStep => {
    const store = draft.store ?? [];
    const rows = [draft.predX0, draft.next, ...store.map((s) => s.value)];
    if (store.length > 2) throw new Error(`${className}: a step stores ${store.length} slots, the kernel writes at most 2`);
    if (!rows.every((row) => row.every(Number.isFinite)))
      throw new BruitError(
        'config',
        `${className}: the update at timestep ${draft.timestep} is undefined (a division by zero): the prediction type cannot be used where the sample is ` +
          `pure noise or pure signal; use prediction_type "v_prediction", rescale_betas_zero_snr false, or other timesteps`,
      );
    for (const s of store) slots = Math.max(slots, s.slot + 1);
    return {
      timestep: draft.timestep,
      inputScale: draft.inputScale ?? 1,
      predX0: draft.predX0,
      next: draft.next,
      store,
      noiseIndex: draft.drawsNoise ? noiseDraws++ : -1,
      logStd: draft.logStd ?? [0, 0],
    };
  });
  return {
    className,
    steps,
    initNoiseSigma: rest.initNoiseSigma ?? 1,
    timesteps: drafts.map((s) => s.timestep),
    sigmas: rest.sigmas ? Array.from(rest.sigmas) : null,
    bound: rest.bound ?? { kind: 'none' },
    varianceHalf: rest.varianceHalf ?? 'unused',
    slots,
    noiseDraws,
  };
}

/** The first `count` steps alone: where they end, another model may go on. */
export function takeSteps(program: SamplerProgram, count: number): SamplerProgram {
  const steps = program.steps.slice(0, count);
  const noiseDraws = steps.reduce((n, { noiseIndex }) => Math.max(n, noiseIndex + 1), 0);
  return { ...program, steps, timesteps: program.timesteps.slice(0, program.timesteps.length - program.steps.length + count), noiseDraws };
}

/** f32 values per step in {@link packProgram}'s table. */
export const STEP_STRIDE = 4 * COLUMNS + 8;

/**
 * The table as the kernel reads it: per step {@link STEP_STRIDE} f32 values: rows predX0, next, store[0], store[1] of {@link COLUMNS} each, then
 * timestep, inputScale, slot of store[0] (-1: none), slot of store[1] (-1: none), noiseIndex, logStd[0], logStd[1], 0.
 */
export function packProgram(program: SamplerProgram): Float32Array {
  const table = new Float32Array(program.steps.length * STEP_STRIDE);
  program.steps.forEach((step, i) => {
    const [a, b] = step.store;
    const at = i * STEP_STRIDE;
    [step.predX0, step.next, a?.value, b?.value].forEach((row, r) => row && table.set(row, at + r * COLUMNS));
    table.set([step.timestep, step.inputScale, a?.slot ?? -1, b?.slot ?? -1, step.noiseIndex, ...step.logStd, 0], at + 4 * COLUMNS);
  });
  return table;
}

/** Applies `bound` in place to a batch of predicted x0, [batch, ...] flattened. */
export function applyBound(bound: Bound, x0: Float64Array, batch: number): void {
  if (bound.kind === 'none') return;
  if (bound.kind === 'clip') {
    for (let i = 0; i < x0.length; i++) x0[i] = Math.min(Math.max(x0[i]!, -bound.range), bound.range);
    return;
  }
  const size = x0.length / batch;
  for (let n = 0; n < batch; n++) {
    const image = x0.subarray(n * size, (n + 1) * size);
    const sorted = image.map(Math.abs).sort();
    // torch.quantile holds the ratio and the rank in f32.
    const rank = Math.fround(Math.fround(bound.ratio) * (size - 1));
    const low = sorted[Math.floor(rank)]!;
    const high = sorted[Math.ceil(rank)]!;
    const s = Math.min(Math.max(low + (rank - Math.floor(rank)) * (high - low), 1), bound.maxValue);
    for (let i = 0; i < size; i++) image[i] = Math.min(Math.max(image[i]!, -s), s) / s;
  }
}

/** What {@link runProgramReference} tells after each step; arrays are its own, valid until the next step. */
export interface ReferenceStep {
  readonly index: number;
  readonly sample: Float64Array;
  readonly x0: Float64Array;
  readonly output: ArrayLike<number>;
}

/**
 * Executes a program in f64 on the host: the reference for the kernel, written for reading and not for speed.
 *
 * @param sample start sample [batch, ...] flattened, already multiplied by `initNoiseSigma`; not changed.
 * @param batch number of images in it (dynamic thresholding is per image).
 * @param model returns the output for (input, timestep): as many elements as `sample`, or twice as many if each image has a variance half.
 * @param noises the program's `noiseDraws` normal draws, each as long as `sample`.
 * @returns the last sample.
 * @throws BruitError `input` if sizes do not fit.
 */
export function runProgramReference(
  program: SamplerProgram,
  sample: ArrayLike<number>,
  batch: number,
  model: (input: Float64Array, timestep: number, index: number) => ArrayLike<number>,
  noises: readonly ArrayLike<number>[] = [],
  onStep?: (step: ReferenceStep) => void,
): Float64Array {
  const length = sample.length;
  const size = length / batch;
  if (!Number.isInteger(size)) throw new BruitError('input', `the sample has ${length} elements, which ${batch} images cannot share equally`);
  if (noises.length < program.noiseDraws || noises.some((n) => n.length !== length))
    throw new BruitError('input', `${program.className} needs ${program.noiseDraws} noise draws of ${length} elements, got [${noises.map((n) => n.length).join(', ')}]`);
  let x: Float64Array = Float64Array.from(sample);
  const slots: Float64Array[] = Array.from({ length: program.slots }, () => new Float64Array(length));
  program.steps.forEach((step, index) => {
    const output = model(
      x.map((value) => value * step.inputScale),
      step.timestep,
      index,
    );
    const halves = output.length / length;
    if (halves !== 1 && halves !== 2) throw new BruitError('input', `the model returned ${output.length} elements for a sample of ${length}; expected ${length} or ${2 * length}`);
    if (halves === 1 && program.varianceHalf !== 'unused')
      throw new BruitError('input', `variance_type "${program.varianceHalf}" needs a model with twice the sample's channels (prediction, then variance)`);
    const columns: ArrayLike<number>[] = [x, new Float64Array(length), new Float64Array(length), new Float64Array(length), ...slots];
    const [, y, x0, z] = columns as Float64Array[];
    for (let i = 0; i < length; i++) {
      const at = Math.floor(i / size) * size * halves + (i % size);
      y![i] = output[at]!;
      const v = halves === 2 ? output[at + size]! : 0;
      const std = program.varianceHalf === 'learned_range' ? Math.exp(step.logStd[0] + step.logStd[1] * v) : program.varianceHalf === 'learned' ? Math.sqrt(Math.max(v, 0)) : 1;
      z![i] = step.noiseIndex < 0 ? 0 : std * noises[step.noiseIndex]![i]!;
    }
    const evaluate = (row: Linear): Float64Array => {
      const result = new Float64Array(length);
      columns.forEach((column, c) => {
        if (row[c] !== 0) for (let i = 0; i < length; i++) result[i]! += row[c]! * column[i]!;
      });
      return result;
    };
    x0!.set(evaluate(step.predX0));
    applyBound(program.bound, x0!, batch);
    const next = evaluate(step.next);
    const stored = step.store.map((s) => evaluate(s.value));
    step.store.forEach((s, k) => (slots[s.slot] = stored[k]!));
    x = next;
    onStep?.({ index, sample: x, x0: x0!, output });
  });
  return x;
}
