/** Golden cases of the model, the samplers and training, wherever there is a device (Node, Chrome, deno). */
import type { Engine } from '../../src/engine/device';
import { TorchCpuGenerator } from '../../src/engine/torch_rng';
import { openSafetensors, type TensorStore } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import type { NamedTensor } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d } from '../../src/model/unet2d';
import { DiffusionProcess } from '../../src/sampler/diffusion_process';
import { recomputeSchedulerCase, type SchedulerCase } from '../../src/sampler/scheduler_case';
import { noiseTables, parseSchedulerConfig } from '../../src/sampler/scheduler_config';
import { learningRates } from '../../src/train/lr_schedule';
import { TrainingStep, type TrainingStepConfig } from '../../src/train/step';
import { loadTokenizer } from '../../src/text/tokenizer';
import { recomputeForward } from '../../src/verify/model';
import { modelClassOf } from '../../src/verify/models';
import { RUNS } from '../../src/verify/pipeline';
import type { CaseFolder } from '../../src/verify/report';
import { verifyCase } from '../../src/verify/verify';
import { assertClose } from './op_suite';

/** Bytes of a file under tests/goldens, e.g. `unet2d_class_cond/io.safetensors`: from the disk, or fetched. */
export type ReadGolden = (path: string) => Promise<ArrayBuffer | Uint8Array>;

export interface GoldenCheck {
  readonly name: string;
  run(engine: Engine): Promise<void>;
}

/** Folders with a recorded forward pass: config.json, weights, io.safetensors. A new one needs its name here, and its class in src/verify/models. */
export const modelCases = [
  'autoencoder_kl_tiny',
  'clip_text_tiny',
  'clip_text_with_projection',
  'clip_vision_with_projection',
  'dit_tiny',
  'half_weights',
  'prior_transformer_tiny',
  't5_encoder_tiny',
  'unet2d_cifar_tiny',
  'unet2d_class_cond',
  'unet2d_condition_if_tiny',
  'unet2d_condition_k_tiny',
  'unet2d_condition_kinds_tiny',
  'unet2d_condition_sd1_tiny',
  'unet2d_condition_sd2_tiny',
  'unet2d_old_names',
] as const;

/** Cases whose weights are stored in several files. */
const variantsOf: Readonly<Record<string, readonly string[]>> = { half_weights: ['fp16', 'bf16'] };

const tensors = async (read: ReadGolden, path: string): Promise<TensorStore> => openSafetensors(bytesSource(await read(path), path));
const json = async <T>(read: ReadGolden, path: string): Promise<T> => JSON.parse(new TextDecoder().decode(await read(path))) as T;

/** Forward passes, with every recorded activation in order of execution, so that the first failure names the layer that went wrong. */
export function modelGoldens(read: ReadGolden): GoldenCheck[] {
  return modelCases.flatMap((dir) =>
    (variantsOf[dir] ?? ['']).map((variant) => ({
      name: `${dir} · ${variant ? `weights stored as ${variant}` : 'forward and recorded activations'}`,
      run: (engine: Engine) => checkModel(engine, read, dir, variant),
    })),
  );
}

async function checkModel(engine: Engine, read: ReadGolden, dir: string, variant: string): Promise<void> {
  const config = await json(read, `${dir}/config.json`);
  const model = modelClassOf(config, dir);
  const io = await tensors(read, `${dir}/io.safetensors`);
  const weights = await tensors(read, `${dir}/${model.weights}${variant && `.${variant}`}.safetensors`);
  const { inputs, computed } = await recomputeForward(engine, model.open(config, `${dir}/config.json`), { io, weights, variant, suffix: variant && `_${variant}`, poison: true });
  const known = new Set([...inputs, ...computed.map((t) => t.name)]);
  const missing = [...io.tensors.keys()].filter((name) => !known.has(name) && (variant === '' || name.includes(variant)));
  if (missing.length) throw new Error(`${dir}: nothing computes ${missing.join(', ')}`);
  for (const { name, data, exact } of computed) assertClose(`${dir} ${name}`, data, await io.readF32(name), exact ? 0 : 2e-5);
}

/** Folders with runs of whole pipelines: what lies beside `runs/`, as far as a case must list it. A new one needs its name here, and its class in src/verify/pipelines. */
export const pipelineCases: Readonly<Record<string, readonly string[]>> = {
  pipeline_sd_tiny: ['runs/text.safetensors'],
  pipeline_sd_img2img_tiny: [],
  pipeline_sd_inpaint9_tiny: ['runs/text.safetensors'],
  pipeline_controlnet_tiny: [],
  pipeline_lcm_tiny: [],
  pipeline_turbo_tiny: [],
  pipeline_xl_tiny: [],
  pipeline_xl_refiner_tiny: [],
  pipeline_xl_controlnet_tiny: [],
  pipeline_xl_inpaint_tiny: [],
  pipeline_ldm_tiny: ['model_index.json'],
  pipeline_ddpm_tiny: ['model_index.json'],
  pipeline_dit_tiny: ['model_index.json'],
  pipeline_if_tiny: ['stage1/model_index.json', 'stage2/model_index.json', 'runs/text.safetensors'],
  pipeline_unclip_tiny: ['model_index.json', 'runs/text.safetensors'],
  pipeline_lora_tiny: ['lora_diffusers.safetensors', 'lora_kohya.safetensors', 'lora_peft.safetensors'],
};

/** Whole pipelines, from prompts, images and recorded draws to images. */
export function pipelineGoldens(read: ReadGolden): GoldenCheck[] {
  return Object.entries(pipelineCases).map(([dir, beside]) => ({
    name: `${dir} · runs`,
    run: async (engine) => {
      const report = await verifyCase(engine, { ...goldenFolder(read, dir), files: [RUNS, ...beside] });
      const miss = report.firstDivergence;
      if (miss) throw new Error(`${dir}: ${miss.file} ${miss.name} differs by ${miss.difference}, allowed ${miss.allowed}`);
      if (report.notRecomputed.length) throw new Error(`${dir}: nothing computes ${report.notRecomputed.map((t) => t.name).join(', ')}`);
    },
  }));
}

/** A folder under tests/goldens; paths may lead out of it to its neighbours. */
function goldenFolder(read: ReadGolden, dir: string): Omit<CaseFolder, 'files'> {
  const at = (path: string): string => new URL(`${dir}/${path}`, 'http://goldens/').pathname.slice(1);
  return {
    name: dir,
    json: (path) => json(read, at(path)),
    tensors: (path) => tensors(read, at(path)),
    model: {
      name: dir,
      has: (path) => read(at(path)).then(() => true, () => false),
      text: async (path) => new TextDecoder().decode(await read(at(path))),
      source: async (path) => bytesSource(await read(at(path)), path),
    },
  };
}

/** What the host computes: tokenizers from their files, and torch's draws. */
export function hostGoldens(read: ReadGolden): GoldenCheck[] {
  const { model: folder } = goldenFolder(read, 'tokenizers');
  return [
    ...['clip', 't5'].map((kind) => ({
      name: `tokenizers · ${kind}`,
      run: async () => {
        const tokenizer = await loadTokenizer(folder, kind);
        const texts = (await json<Record<string, { text: string; input_ids: number[] }[]>>(read, 'tokenizers/case.json'))[kind]!;
        for (const { text, input_ids } of texts) assertClose(JSON.stringify(text), tokenizer.batch([text], input_ids.length).inputIds, input_ids, 0);
      },
    })),
    {
      name: "torch_random · torch's normal draws on the CPU",
      run: async () => {
        const io = await tensors(read, 'torch_random/io.safetensors');
        for (const [name, { shape }] of io.tensors) if (name.startsWith('randn.')) assertClose(name, new TorchCpuGenerator(Number(name.split('.')[1])).randn(shape), await io.readF32(name), 1e-6);
      },
    },
  ];
}

/** Trajectories of diffusers' schedulers over a toy denoiser, with recorded noise. */
export async function schedulerGoldens(read: ReadGolden): Promise<GoldenCheck[]> {
  const { _about, ...cases } = await json<Record<string, SchedulerCase> & { _about: string }>(read, 'schedulers/cases.json');
  const io = await tensors(read, 'schedulers/io.safetensors');
  return Object.entries(cases).map(([name, c]) => ({
    name: `schedulers · ${name}`,
    run: async (engine) => {
      const recorded = (part: string) => (io.tensors.has(`${name}.${part}`) ? io.readF32(`${name}.${part}`) : undefined);
      const { sigmas, ...result } = await recomputeSchedulerCase(engine, c, { shape: io.tensors.get('sample')!.shape, data: await io.readF32('sample') }, await recorded('noise'));
      for (const point of ['first', 'middle', 'last'] as const) assertClose(`${name} ${point}`, result[point], await io.readF32(`${name}.${point}`), 1e-5);
      assertClose(`${name} timesteps`, result.timesteps, await io.readF32(`${name}.timesteps`), 1e-6);
      // Both or neither: a class that has sigmas records them.
      assertClose(`${name} sigmas`, sigmas ?? [], (await recorded('sigmas')) ?? [], 1e-6);
    },
  }));
}

/** A recorded training run. */
export interface TrainingGolden {
  readonly dir: string;
  /** Recorded draws and results. */
  readonly io: TensorStore;
  readonly config: unknown;
  readonly weights: TensorStore;
  readonly json: {
    readonly schedule: object;
    readonly optimizer: { lr: number; betas: [number, number]; eps: number; weight_decay: number };
    readonly lr_schedule?: { num_warmup_steps: number; num_training_steps: number };
    readonly ema_decay?: number;
    readonly steps: number;
    readonly clip?: { max_norm: number };
    readonly not_determined_in_float32?: Readonly<Record<string, number>>;
  };
}

/** Opens the record in `dir`: `train` is the name of its JSON and safetensors, or `case` and `io`. */
export async function loadTrainingGolden(read: ReadGolden, dir: string, description: string, io: string): Promise<TrainingGolden> {
  return {
    dir,
    io: await tensors(read, `${dir}/${io}`),
    config: await json(read, `${dir}/config.json`),
    weights: await tensors(read, `${dir}/diffusion_pytorch_model.safetensors`),
    json: await json(read, `${dir}/${description}`),
  };
}

/** The record's training step, with its weights. */
export async function createTrainingStep(engine: Engine, { dir, json, io, config, weights }: TrainingGolden, overrides: Partial<TrainingStepConfig> = {}): Promise<TrainingStep> {
  const model = parseUNet2DConfig(config, dir);
  const scheduler = parseSchedulerConfig({ _class_name: 'DDPMScheduler', ...json.schedule });
  const { betas, alphasCumprod } = noiseTables(scheduler);
  const step = await TrainingStep.create(engine, {
    batch: io.tensors.get('0.x0')!.shape as [number, number, number, number],
    buildModel: (ctx, sample, timestep) => unet2d(ctx, model, { sample, timestep }),
    process: new DiffusionProcess(betas, alphasCumprod),
    loss: { predictionType: scheduler.prediction_type },
    optimizer: { kind: 'adamw', beta1: json.optimizer.betas[0], beta2: json.optimizer.betas[1], eps: json.optimizer.eps, weightDecay: json.optimizer.weight_decay, maxGradNorm: json.clip?.max_norm ?? 0 },
    learningRates: new Float64Array(json.steps).fill(json.optimizer.lr),
    emaDecay: json.ema_decay ?? 0,
    seed: 0,
    labelled: false,
    recordedDraws: true,
    ...overrides,
  });
  await step.weights.load(weights);
  step.ema.copyFrom(step.weights);
  return step;
}

/** Runs step `k` on its recorded batch and draws. */
export async function runTrainingStep(step: TrainingStep, io: TensorStore, k: number): Promise<void> {
  step.write({ images: await io.readF32(`${k}.x0`), noise: await io.readF32(`${k}.noise`), t: await io.readI32(`${k}.t`) });
  step.run();
}

async function compareAll(what: string, actual: readonly NamedTensor[], io: TensorStore, prefix: string, bound: (name: string) => number): Promise<void> {
  for (const { name, data } of actual) {
    const expected = await io.readF32(prefix + name);
    const allowed = bound(prefix + name);
    data.forEach((v, i) => {
      if (!(Math.abs(v - expected[i]!) <= allowed)) throw new Error(`${what} ${name}[${i}] is ${v}, expected ${expected[i]!}, allowed difference ${allowed}`);
    });
  }
}

async function largestGradient(io: TensorStore): Promise<number> {
  let largest = 0;
  for (const k of io.tensors.keys()) if (k.startsWith('grad.')) for (const v of await io.readF32(k)) largest = Math.max(largest, Math.abs(v));
  return largest;
}

/** Recorded steps, the whole way: losses, norms, gradients of the first step, weights and moving averages at the end. */
export function trainingGoldens(read: ReadGolden): GoldenCheck[] {
  return [
    {
      name: 'unet2d_cifar_tiny · three AdamW steps with EMA',
      run: async (engine) => checkTraining(engine, await loadTrainingGolden(read, 'unet2d_cifar_tiny', 'train.json', 'train.safetensors')),
    },
    {
      name: 'train_unet2d_vpred · velocity, min-SNR weights, clipping, warm-up',
      run: async (engine) => {
        const golden = await loadTrainingGolden(read, 'train_unet2d_vpred', 'case.json', 'io.safetensors');
        const { optimizer, lr_schedule, steps } = golden.json;
        await checkTraining(engine, golden, {
          loss: { predictionType: 'v_prediction', minSnrGamma: 5 },
          learningRates: learningRates({ name: 'cosine', lr: optimizer.lr, num_warmup_steps: lr_schedule!.num_warmup_steps, num_training_steps: lr_schedule!.num_training_steps }, steps),
        });
      },
    },
  ];
}

async function checkTraining(engine: Engine, golden: TrainingGolden, overrides: Partial<TrainingStepConfig> = {}): Promise<void> {
  const { io, json } = golden;
  const step = await createTrainingStep(engine, golden, overrides);
  try {
    const { values } = step;
    for (let k = 0; k < json.steps; k++) {
      await runTrainingStep(step, io, k);
      const check = async (name: string, actual: () => Promise<ArrayLike<number>>, tolerance: number) => {
        if (io.tensors.has(name)) assertClose(name, await actual(), await io.readF32(name), tolerance);
      };
      const metrics = (await step.metrics(k))[0]!;
      await check(`${k}.xt`, () => step.read(values.xt), 1e-6);
      await check(`${k}.prediction`, () => step.read(values.prediction), 1e-4);
      await check(`${k}.loss`, () => step.read(values.loss), 1e-5);
      await check(`${k}.grad_norm`, async () => [metrics.gradNorm], 1e-4);
      // The first learning rate of a warm-up is 0, so the bound is absolute.
      if (io.tensors.has(`${k}.lr`)) assertClose(`${k}.lr`, [metrics.learningRate + 1], [(await io.readF32(`${k}.lr`))[0]! + 1], 1e-7);
      if (k > 0) continue;
      await check('grad_norm', async () => [metrics.gradNorm], 1e-4);
      const bound = 1e-4 * (await largestGradient(io));
      await compareAll('gradient', await step.gradients.readAll(), io, 'grad.', () => bound);
    }
    const reach = json.optimizer.lr * json.steps;
    const bound = (name: string) => (name in (json.not_determined_in_float32 ?? {}) ? 2 : 0.1) * reach;
    await compareAll('weight', await step.weights.readAll(), io, 'param.', bound);
    if (json.ema_decay !== undefined) await compareAll('EMA', await step.ema.readAll(), io, 'ema.', bound);
  } finally {
    step.destroy();
  }
}
