/**
 * Recorded training steps: a JSON file with `loss`, `schedule`, `optimizer` (`train.json` beside `train.safetensors`, or `case.json` beside
 * `io.safetensors`), batches and draws `N.x0`, `N.noise`, `N.t`, and what came of them.
 */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { controlSlots } from '../engine/ops/optimizer';
import { scale } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { compile } from '../engine/program';
import { matchCheckpoint } from '../io/checkpoint';
import { isJsonObject } from '../io/json';
import type { TensorStore } from '../io/safetensors';
import type { NamedTensor } from '../model/parameters';
import { DiffusionProcess } from '../sampler/diffusion_process';
import type { PredictionType } from '../sampler/prediction';
import { noiseTables, parseSchedulerConfig } from '../sampler/scheduler_config';
import { diffusionLoss, lossTarget, StepCoefficients, type LossConfig } from '../train/loss';
import { learningRates } from '../train/lr_schedule';
import { TrainingStep, type OptimizerConfig } from '../train/step';
import { scheduleNamed } from './learning_rates';
import type { OpenModel } from './model';
import { tolerances, type CaseFolder, type CaseReport } from './report';

interface TrainingCase {
  readonly loss: string;
  readonly schedule: Readonly<Record<string, unknown>>;
  readonly optimizer: Readonly<Record<string, unknown>>;
  readonly lr_schedule?: Readonly<Record<string, unknown>>;
  readonly clip?: { readonly max_norm: number };
  readonly ema_decay?: number;
  readonly steps: number;
  readonly min_snr_gamma?: number;
  readonly not_determined_in_float32?: Readonly<Record<string, unknown>>;
}

export const isTrainingCase = (json: unknown): json is TrainingCase => isJsonObject(json) && typeof json.loss === 'string' && isJsonObject(json.optimizer) && isJsonObject(json.schedule) && typeof json.steps === 'number';

/** What the loss's own words say where the case has no key for it. */
export function lossConfig(json: Pick<TrainingCase, 'loss' | 'schedule' | 'min_snr_gamma'>, file: string): LossConfig {
  const types: Readonly<Record<string, PredictionType>> = { epsilon: 'epsilon', noise: 'epsilon', sample: 'sample', x0: 'sample', v_prediction: 'v_prediction', velocity: 'v_prediction' };
  const said = json.schedule.prediction_type ?? /\bon (epsilon|noise|sample|x0|velocity)\b/.exec(json.loss)?.[1] ?? 'epsilon';
  const predictionType = types[said as string];
  if (!predictionType) throw new BruitError('input', `${file}: prediction_type ${JSON.stringify(said)} is unknown; known are epsilon, sample, v_prediction`);
  const gamma = json.min_snr_gamma ?? Number(/min\(snr, *([\d.]+)\)/.exec(json.loss)?.[1] ?? NaN);
  return { predictionType, ...(Number.isFinite(gamma) && { minSnrGamma: gamma }) };
}

function optimizerConfig({ optimizer, clip }: TrainingCase, file: string): OptimizerConfig {
  const kinds = { adamw: 'adamw', sgd: 'sgd' } as const;
  const kind = kinds[String(optimizer.name).toLowerCase() as keyof typeof kinds] as 'adamw' | 'sgd' | undefined;
  if (!kind) throw new BruitError('input', `${file}: optimizer ${JSON.stringify(optimizer.name)} is not supported; AdamW and SGD are`);
  const number = (key: string, fallback: number): number => (typeof optimizer[key] === 'number' ? optimizer[key] : fallback);
  const [beta1, beta2] = Array.isArray(optimizer.betas) ? (optimizer.betas as [number, number]) : [0.9, 0.999];
  return {
    kind,
    beta1: kind === 'sgd' ? number('momentum', 0) : beta1,
    beta2,
    eps: number('eps', 1e-8),
    weightDecay: number('weight_decay', kind === 'sgd' ? 0 : 0.01),
    maxGradNorm: clip?.max_norm ?? 0,
  };
}

/** What is trained, from which weights. */
type TrainedModel = NonNullable<OpenModel['training']> & { readonly weights: () => Promise<TensorStore> };

export async function verifyTraining(report: CaseReport, engine: Engine, folder: CaseFolder, { buildModel, labelled, weights }: TrainedModel, json: TrainingCase, { jsonFile, file }: { jsonFile: string; file: string }): Promise<void> {
  const at = `${folder.name}/${jsonFile}`;
  const store = await folder.tensors(file);
  const { steps } = json;
  report.kinds.push(`${steps} training steps`);
  for (let n = 0; n < steps; n++) {
    for (const name of ['x0', 'noise', 't']) if (!store.tensors.has(`${n}.${name}`)) throw new BruitError('input', `${folder.name}/${file} has no tensor "${n}.${name}", which training step ${n} needs`);
  }
  const labelName = ['class_labels', 'labels', 'y'].find((name) => store.tensors.has(`0.${name}`));
  if (labelled && !labelName) throw new BruitError('input', `${folder.name}/${file} has no tensor "0.class_labels", which this model's config asks for`);

  const { betas, alphasCumprod } = noiseTables(parseSchedulerConfig({ _class_name: 'DDPMScheduler', ...json.schedule }, at));
  const process = new DiffusionProcess(betas, alphasCumprod);
  const loss = lossConfig(json, at);
  const { lr } = json.optimizer;
  if (typeof lr !== 'number') throw new BruitError('input', `${at}: optimizer.lr must be a number`);
  const schedule = json.lr_schedule ? scheduleNamed(String(json.lr_schedule.name), json.lr_schedule, at) : ({ name: 'constant' } as const);
  const rates = learningRates({ ...schedule, lr }, steps);
  const batch = store.tensors.get('0.x0')!.shape as [number, number, number, number];
  const step = await TrainingStep.create(engine, {
    batch,
    buildModel,
    process,
    loss,
    optimizer: optimizerConfig(json, at),
    learningRates: rates,
    emaDecay: json.ema_decay ?? 0,
    seed: 0,
    labelled,
    recordedDraws: true,
  });
  try {
    await loadWeights(step, await weights());
    step.ema.copyFrom(step.weights);
    const terms = await LossTerms.create(engine, batch, process, loss, step.values.prediction.shape);
    try {
      for (let n = 0; n < steps; n++) {
        const [x0, noise, t] = [await store.readF32(`${n}.x0`), await store.readF32(`${n}.noise`), await store.readI32(`${n}.t`)];
        step.write({ images: x0, t, noise, ...(labelled && { labels: await store.readI32(`${n}.${labelName}`) }) });
        step.run();
        await compareStep(report, step, terms, { store, file, json, n, x0, noise, t, lr: rates[n]! });
      }
      const moved = rates.reduce((a, b) => a + b, 0); // learning rate times steps
      const undetermined = json.not_determined_in_float32 ?? {};
      const allowed = (name: string) => (Object.hasOwn(undetermined, name) ? tolerances.undetermined : tolerances.parameter) * moved;
      for (const [prefix, stored] of [['param', step.weights], ['ema', step.ema]] as const) {
        if (prefix === 'ema' && json.ema_decay === undefined) continue;
        await compareTensors(report, { store, file, prefix }, await stored.readAll(), allowed);
      }
    } finally {
      terms.destroy();
    }
  } finally {
    step.destroy();
  }
  skipRest(report, store, file);
}

/** Trained and frozen weights from one checkpoint. */
async function loadWeights(step: TrainingStep, checkpoint: TensorStore): Promise<void> {
  const trained = new Set(step.weights.specs.map((s) => s.name));
  const names = matchCheckpoint(checkpoint, new Map([...step.weights.specs, ...step.frozen.specs].map((s) => [s.name, [...s.shape]])));
  for (const [name, stored] of names) (trained.has(name) ? step.weights : step.frozen).write(name, await checkpoint.readF32(stored));
}

interface StepRecord {
  readonly store: TensorStore;
  readonly file: string;
  readonly json: TrainingCase;
  readonly n: number;
  readonly x0: Float32Array;
  readonly noise: Float32Array;
  readonly t: Int32Array;
  readonly lr: number;
}

async function compareStep(report: CaseReport, step: TrainingStep, terms: LossTerms, { store, file, json, n, x0, noise, t, lr }: StepRecord): Promise<void> {
  const check = async (name: string, read: () => Promise<Float32Array> | Float32Array, tolerance: number) => {
    if (store.tensors.has(name)) await report.compare(store, file, name, await read(), (largest) => tolerance * largest);
  };
  const { values } = step;
  const prediction = await step.read(values.prediction);
  const own = await terms.run({ x0, noise, t, xt: await step.read(values.xt), prediction });
  await check(`${n}.xt`, () => step.read(values.xt), tolerances.trajectory);
  await check(`${n}.velocity`, () => own.target, tolerances.trajectory);
  await check(`${n}.snr`, () => own.snr, tolerances.trajectory);
  await check(`${n}.weight`, () => own.weight, tolerances.trajectory);
  await check(`${n}.prediction`, () => prediction, tolerances.model);
  await check(`${n}.loss_per_sample`, () => own.simple, tolerances.loss);
  await check(`${n}.loss`, () => step.read(values.loss), tolerances.loss);
  const { gradNorm, learningRate } = (await step.metrics(n))[0]!;
  await check(`${n}.grad_norm`, () => Float32Array.of(gradNorm), tolerances.gradient);
  if (n === 0) await check('grad_norm', () => Float32Array.of(gradNorm), tolerances.gradient);
  if (store.tensors.has(`${n}.lr`)) await report.compare(store, file, `${n}.lr`, Float32Array.of(learningRate), () => 1e-6 * lr);
  if (n > 0) return;

  const largest = await largestRecorded(store, 'grad.');
  const gradients = await step.gradients.readAll();
  await compareTensors(report, { store, file, prefix: 'grad' }, gradients, () => tolerances.gradient * largest);
  if (json.clip === undefined) return;
  const factor = (await step.readState()).control[controlSlots.factor]!;
  const largestClipped = largest * Math.min(1, factor);
  await compareTensors(report, { store, file, prefix: 'clipped' }, gradients.map((g) => ({ ...g, data: g.data.map((v) => v * factor) })), () => tolerances.gradient * largestClipped);
}

/** Largest value among the records of a prefix: what all of them are measured by. */
export async function largestRecorded(store: TensorStore, prefix: string): Promise<number> {
  let largest = 0;
  for (const name of store.tensors.keys()) if (name.startsWith(prefix)) for (const v of await store.readF32(name)) largest = Math.max(largest, Math.abs(v));
  return largest;
}

export async function compareTensors(report: CaseReport, { store, file, prefix }: { store: TensorStore; file: string; prefix: string }, tensors: readonly NamedTensor[], allowed: (name: string) => number): Promise<void> {
  for (const { name, data } of tensors) {
    const full = `${prefix}.${name}`;
    if (store.tensors.has(full)) await report.compare(store, file, full, data, () => allowed(full));
  }
}

const inputs = /^\d+\.(x0|noise|t|class_labels|labels|y)$/;

/** Lists what the file holds beside inputs and what was compared. */
function skipRest(report: CaseReport, store: TensorStore, file: string): void {
  const done = new Set(report.comparisons.filter((c) => c.file === file).map((c) => c.name));
  for (const name of store.tensors.keys()) {
    // A forward record in the same file is another check's.
    if (done.has(name) || inputs.test(name) || /^(act\.|sample$|timestep$|class_labels$|output)/.test(name)) continue;
    report.skip(file, name, 'nothing that training computes');
  }
}

/** The terms of the loss that a training step does not keep: target, weights and the unweighted errors, from the same formulas. */
class LossTerms {
  private constructor(
    private readonly program: Awaited<ReturnType<typeof compile>>,
    private readonly leaves: Readonly<Record<'x0' | 'noise' | 'xt' | 'prediction' | 't', Tensor>>,
    private readonly outputs: Readonly<Record<'target' | 'weight' | 'simple', Tensor>>,
    private readonly process: DiffusionProcess,
  ) {}

  static async create(engine: Engine, batch: readonly number[], process: DiffusionProcess, config: LossConfig, output: readonly number[]): Promise<LossTerms> {
    const graph = new Graph();
    const leaves = { x0: graph.input('x0', batch), noise: graph.input('noise', batch), xt: graph.input('xt', batch), prediction: graph.input('prediction', output), t: graph.input('t', [batch[0]!], 'i32') };
    const coefficients = new StepCoefficients(process, config, leaves.t);
    const { simple } = diffusionLoss(coefficients, config, { ...leaves, output: leaves.prediction });
    // Where the target is a draw itself, a copy of it.
    const outputs = { target: scale(lossTarget(coefficients, config, leaves.x0, leaves.noise), 1), weight: reshape(coefficients.get('weight'), [-1]), simple };
    return new LossTerms(await compile(engine, graph, { outputs: Object.values(outputs), label: 'loss terms' }), leaves, outputs, process);
  }

  async run({ t, ...values }: { x0: Float32Array; noise: Float32Array; xt: Float32Array; prediction: Float32Array; t: Int32Array }) {
    for (const [name, data] of Object.entries(values)) this.program.write(this.leaves[name as keyof typeof values], data);
    this.program.write(this.leaves.t, t);
    this.program.run();
    const { target, weight, simple } = this.outputs;
    return { target: await this.program.read(target), weight: await this.program.read(weight), simple: await this.program.read(simple), snr: Float32Array.from(t, (step) => this.process.snr(step)) };
  }

  destroy(): void {
    this.program.destroy();
  }
}
