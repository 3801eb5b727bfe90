/** The Sample tab's half in the worker: a model, runs of its sampler, pictures and files of them. */
import { applyPalette, GIFEncoder, quantize } from 'gifenc';
import type { Engine } from '../../src/engine/device';
import { BruitError, check } from '../../src/engine/errors';
import { estimate } from '../../src/engine/estimate';
import { Graph } from '../../src/engine/graph';
import { normals, RngStream } from '../../src/engine/rng';
import { numel } from '../../src/engine/shape';
import { readJson, type ModelFolder } from '../../src/io/folder';
import { encodePng, imageGrid } from '../../src/io/png';
import { Parameters } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { DDPMPipeline, schedulerNames, type SchedulerName } from '../../src/pipelines/ddpm';
import { createSampler, convertSchedulerConfig, type SchedulerConfig } from '../../src/sampler/scheduler_config';
import type { GpuSampler } from '../../src/sampler/sample';
import type { Frame } from '../webm';
import { latentPipelines, openLatentModel, type LatentModel } from './latent_models';
import { openSource, type Download, type ModelSource } from './models';
import { Trajectory, type Quantity } from './trajectory';
import type { CanvasSize, Picture, Views } from './view';

/** What is known of a model before its weights are fetched. */
export interface ModelPlan {
  readonly name: string;
  readonly pipeline: string;
  /** What is still to be fetched. */
  readonly downloadBytes: number;
  readonly weightBytes: number;
  /** Activations of one step for a batch of `batch`; absent where a pipeline plans stage by stage. */
  readonly activationBytes: number | undefined;
  readonly batch: number;
  /** The largest tensor that the adapter binds. */
  readonly bindingLimit: number;
  /** Why it cannot run here. */
  readonly problem: string | undefined;
}

export interface ModelInfo {
  readonly name: string;
  readonly pipeline: string;
  /** `labels` need a class each, `prompt` a text, `none` nothing. */
  readonly condition: 'labels' | 'prompt' | 'none';
  readonly classes: readonly string[];
  readonly size: readonly [height: number, width: number];
  readonly scheduler: string;
  /** Guidance scale to begin with; absent where the model knows no null label. */
  readonly guidance: number | undefined;
  readonly weights: number;
  /** It works on latents: images are larger, and fewer fit. */
  readonly latent: boolean;
}

export interface SampleSettings {
  readonly scheduler: SchedulerName | 'own';
  readonly steps: number;
  readonly guidance: number;
  readonly seed: number;
  readonly count: number;
  readonly labels: readonly number[];
  readonly prompt: string;
  readonly negativePrompt: string;
  /** Goes from `seed` at the first image to this seed at the last, over the sphere between their noises. */
  readonly towards: number | undefined;
}

export interface StepInfo {
  readonly step: number;
  readonly total: number;
  readonly timestep: number;
  readonly signal: number;
  readonly noise: number;
  readonly snr: number;
  readonly size: CanvasSize | undefined;
  /** After the last step: images or tiles that are decoded, of how many. */
  readonly decoded?: readonly [done: number, total: number];
}

export interface RunResult {
  readonly milliseconds: number;
  readonly evaluations: number;
  readonly compileMilliseconds: number;
  readonly scheduler: string;
  readonly info: StepInfo;
}

type Model = { readonly info: ModelInfo } & ({ readonly kind: 'ddpm'; readonly pipeline: DDPMPipeline } | { readonly kind: 'latent'; readonly pipeline: LatentModel });

const pixelPipelines = ['DDPMPipeline', 'DDIMPipeline', 'PNDMPipeline', 'ScoreSdeVePipeline'];
const isLatent = (name: string): name is (typeof latentPipelines)[number] => (latentPipelines as readonly string[]).includes(name);
/** Why a class of model_index.json does not run here. */
const notHere = (name: string): string | undefined =>
  isLatent(name) || pixelPipelines.includes(name) ? undefined : `This page samples ${[...pixelPipelines, ...latentPipelines].join(', ')}; model_index.json names ${name}. The command line (bruit sample) runs more.`;

interface Run {
  readonly settings: SampleSettings;
  readonly trajectory: Trajectory;
  /** Decoded images of a latent model. */
  decoded?: { readonly picture: Picture; readonly data: Float32Array; readonly shape: readonly [number, number, number, number]; readonly buffer: GPUBuffer };
}

export class SampleTab {
  private model: Model | undefined;
  private readonly runs = new Map<string, Run>();
  /** Compiled samplers by what they were compiled for; the newest few. */
  private readonly compiled = new Map<string, Promise<GpuSampler>>();
  private abort: AbortController | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly views: Views,
  ) {}

  /** Reads configs only. */
  async plan(source: ModelSource, batch: number): Promise<ModelPlan> {
    const folder = openSource(source, () => undefined);
    check(await folder.has('model_index.json'), 'checkpoint', () => `${folder.name}: there is no model_index.json; this is not a model folder in diffusers’ layout`);
    const index = await readJson(folder, 'model_index.json');
    const pipeline = String(index._class_name);
    const components = Object.entries(index).filter(([name, value]) => /^\w[\w.-]*$/.test(name) && Array.isArray(value) && value[0] && !/scheduler|tokenizer|safety|feature/.test(name)).map(([name]) => name);
    const files = components.flatMap((name) => ['diffusion_pytorch_model', 'diffusion_pytorch_model.fp16', 'model', 'model.fp16'].map((base) => `${name}/${base}.safetensors`));
    const whole = files.filter((file) => !file.includes('.fp16.'));
    let downloadBytes = (await folder.sizes?.(whole)) ?? 0;
    if (downloadBytes === 0) downloadBytes = (await folder.sizes?.(files)) ?? 0;
    const { maxStorageBufferBindingSize: bindingLimit } = this.engine.profile.limits;
    const base = { name: folder.name, pipeline, downloadBytes, batch, bindingLimit };
    if (!pixelPipelines.includes(pipeline)) return { ...base, weightBytes: downloadBytes, activationBytes: undefined, problem: notHere(pipeline) };
    const unet = parseUNet2DConfig(await readJson(folder, 'unet/config.json'), `${folder.name}/unet/config.json`);
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const [height, width] = unet.sample_size ?? [64, 64];
    const output = unet2d({ graph, parameters }, unet, unet2dInputs({ graph, parameters }, unet, [batch, height, width]));
    const weightBytes = [...parameters.tensors.values()].reduce((n, t) => n + t.bytes, 0);
    const { plannedBytes, slots } = estimate(graph, [output], this.engine.profile);
    const largest = Math.max(...slots);
    const problem = largest > bindingLimit ? `A tensor of a batch of ${batch} takes ${megabytes(largest)}; this adapter binds at most ${megabytes(bindingLimit)}. Choose fewer images.` : undefined;
    return { ...base, weightBytes, activationBytes: plannedBytes, problem };
  }

  async load(source: ModelSource, onDownload: (d: Download) => void): Promise<ModelInfo> {
    const folder: ModelFolder = openSource(source, onDownload);
    const pipeline = String((await readJson(folder, 'model_index.json'))._class_name);
    const problem = notHere(pipeline);
    check(problem === undefined, 'config', () => `${folder.name}: ${problem}`);
    let model: Model;
    if (isLatent(pipeline)) {
      const loaded = await openLatentModel(this.engine, folder, pipeline);
      model = { kind: 'latent', pipeline: loaded, info: { name: folder.name, pipeline, ...loaded.info, scheduler: loaded.scheduler._class_name, weights: 0, latent: true } };
    } else {
      const loaded = await DDPMPipeline.fromFolder(this.engine, folder);
      const { unet, guidance } = loaded;
      const count = unet.class_embed_type === null ? (unet.num_class_embeds ?? 0) : 0;
      const classes = Array.from({ length: count }, (_, i) => guidance?.class_names?.[i] ?? String(i)).filter((_, i) => i !== guidance?.null_label);
      const info = { name: folder.name, pipeline, condition: count ? 'labels' : 'none', classes, size: unet.sample_size ?? [64, 64], scheduler: loaded.scheduler._class_name, guidance: guidance?.guidance_scale, weights: loaded.weights.count, latent: false } as const;
      model = { kind: 'ddpm', pipeline: loaded, info };
    }
    this.free();
    this.model = model;
    return model.info;
  }

  /** The loaded model, for the tab that looks inside. */
  get pipeline(): DDPMPipeline | undefined {
    return this.model?.kind === 'ddpm' ? this.model.pipeline : undefined;
  }

  /** Runs a trajectory and draws the predicted x0 on `canvas` as it goes. */
  async run(canvas: string, settings: SampleSettings, quantity: Quantity, onStep: (info: StepInfo) => void): Promise<RunResult> {
    const { model } = this;
    if (!model) throw new BruitError('input', 'load a model first');
    this.abort ??= new AbortController();
    const { signal } = this.abort;
    const follow = (trajectory: Trajectory, sampler: GpuSampler, step: number): void => {
      trajectory.keep(step, sampler);
      const shown = step === 0 || step === trajectory.total || quantity === 'sample' ? step : step - 1;
      const size = this.views.draw(canvas, trajectory.picture(shown, quantity));
      onStep({ step, total: trajectory.total, ...trajectory.level(step), size });
    };
    const start = performance.now();
    let begun = start;
    let run: Run;
    if (model.kind === 'ddpm') {
      const sampler = await this.sampler(canvas, model.pipeline, settings);
      const { program, sampleShape: shape } = sampler;
      const scheduler = schedulerOf(model.pipeline.scheduler, settings.scheduler);
      sampler.set({ seed: settings.seed, ...(model.pipeline.guidance && settings.guidance !== 1 && { guidanceScale: settings.guidance }), latents: settings.towards === undefined ? null : between(settings.seed, settings.towards, shape), ...(settings.labels.length > 0 && { labels: labelsOf(settings) }) });
      run = this.begin(canvas, settings, new Trajectory(this.engine, shape, program, scheduler));
      begun = performance.now();
      await sampler.run({ signal, onQueued: (step) => follow(run.trajectory, sampler, step) });
    } else {
      const { pipeline } = model;
      const scheduler = schedulerOf(pipeline.scheduler, settings.scheduler);
      const program = createSampler(scheduler, { numInferenceSteps: settings.steps });
      const shape = pipeline.shape(settings.count);
      run = this.begin(canvas, settings, new Trajectory(this.engine, shape, program, scheduler));
      const { data, shape: image } = await pipeline.generate({
        settings,
        labels: settings.labels.length > 0 ? [...labelsOf(settings)] : [],
        scheduler,
        latents: settings.towards === undefined ? undefined : between(settings.seed, settings.towards, shape),
        signal,
        onQueued: (sampler, step) => {
          if (step === 0) begun = performance.now();
          follow(run.trajectory, sampler, step);
        },
        onDecode: (done, total) => onStep({ step: run.trajectory.total, total: run.trajectory.total, ...run.trajectory.level(run.trajectory.total), size: this.views.size(canvas), decoded: [done, total] }),
      });
      const buffer = this.engine.createBuffer('decoded', data.byteLength, 128 | 8);
      this.engine.device.queue.writeBuffer(buffer, 0, data as Float32Array<ArrayBuffer>);
      const [count, channels, height, width] = image as readonly [number, number, number, number];
      run.decoded = { data, shape: [count, channels, height, width], buffer, picture: { a: { buffer, offset: 0 }, count, channels, height, width, range: [0, 1] } };
      this.views.draw(canvas, run.decoded.picture);
    }
    const info = this.show(canvas, run.trajectory.total, quantity);
    return { milliseconds: performance.now() - begun, compileMilliseconds: begun - start, evaluations: run.trajectory.total, scheduler: run.trajectory.program.className, info };
  }

  /** Ends runs in progress. */
  stop(): void {
    this.abort?.abort();
    this.abort = undefined;
  }

  /** Draws `step` of the last run on a canvas. */
  show(canvas: string, step: number, quantity: Quantity): StepInfo {
    const run = this.last(canvas);
    const { trajectory, decoded } = run;
    const size = this.views.draw(canvas, decoded && step >= trajectory.total && quantity !== 'epsilon' ? decoded.picture : trajectory.picture(step, quantity));
    return { step, total: trajectory.total, ...trajectory.level(step), size };
  }

  /** A grid of the results, with what made them in the file (tEXt). */
  async png(canvas: string): Promise<Uint8Array> {
    const run = this.last(canvas);
    const images = await this.images(run, run.trajectory.total, 'x0');
    return encodePng(imageGrid(images, { padding: 2 }), this.description(run));
  }

  /** The trajectory of a quantity as an animation, at most 60 frames and the result. */
  async frames(canvas: string, quantity: Quantity): Promise<Frame[]> {
    const run = this.last(canvas);
    const { total } = run.trajectory;
    const stride = Math.max(1, Math.floor(total / 60));
    const frames: Frame[] = [];
    for (let step = 0; step <= total; step = step === total ? total + 1 : Math.min(step + stride, total)) {
      const { width, height, channels, data } = imageGrid(await this.images(run, step, step === total ? 'x0' : quantity), { padding: 2 });
      const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
      for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) rgba[4 * i + c] = data[i * channels + (channels === 3 ? c : 0)]!;
      frames.push({ width, height, rgba, milliseconds: step === total ? 2000 : 80 });
    }
    // Latents are smaller than the image that they end as; an animation has one size.
    const last = frames.at(-1)!;
    return frames.map((frame) => resized(frame, last));
  }

  async gif(canvas: string, quantity: Quantity): Promise<Uint8Array> {
    const encoder = GIFEncoder();
    for (const { width, height, rgba, milliseconds } of await this.frames(canvas, quantity)) {
      const pixels = new Uint8Array(rgba.buffer);
      const palette = quantize(pixels, 256);
      encoder.writeFrame(applyPalette(pixels, palette), width, height, { palette, delay: milliseconds });
    }
    encoder.finish();
    return encoder.bytes();
  }

  private async images(run: Run, step: number, quantity: Quantity) {
    if (run.decoded && step === run.trajectory.total) return run.decoded;
    const [count, channels, height, width] = run.trajectory.shape;
    const data = await run.trajectory.read(step, quantity);
    if (channels === 1 || channels === 3) return { data, shape: [count, channels, height, width] as const };
    // Of latents, the first channel.
    const plane = height * width;
    const grey = new Float32Array(count * plane);
    for (let n = 0; n < count; n++) grey.set(data.subarray(n * channels * plane, n * channels * plane + plane), n * plane);
    return { data: grey, shape: [count, 1, height, width] as const };
  }

  private description({ settings, trajectory }: Run): Record<string, string> {
    const { info } = this.model!;
    const { prompt, negativePrompt, labels, towards, ...rest } = settings;
    const made = {
      model: info.name,
      ...rest,
      scheduler: trajectory.program.className,
      ...(info.condition === 'prompt' ? { prompt, negative_prompt: negativePrompt } : info.condition === 'labels' ? { labels } : {}),
      ...(towards !== undefined && { towards }),
    };
    return { Software: 'bruit', parameters: JSON.stringify(made) };
  }

  private last(canvas: string): Run {
    const run = this.runs.get(canvas);
    if (!run) throw new BruitError('input', 'there is no trajectory yet: sample first');
    return run;
  }

  private begin(canvas: string, settings: SampleSettings, trajectory: Trajectory): Run {
    this.forget(canvas);
    const run: Run = { settings, trajectory };
    this.runs.set(canvas, run);
    return run;
  }

  private forget(canvas: string): void {
    const run = this.runs.get(canvas);
    run?.trajectory.destroy();
    if (run?.decoded) this.engine.destroyBuffer(run.decoded.buffer);
    this.runs.delete(canvas);
  }

  private sampler(canvas: string, pipeline: DDPMPipeline, s: SampleSettings): Promise<GpuSampler> {
    const key = JSON.stringify([canvas, s.scheduler, s.steps, s.count, s.labels.length > 0, s.guidance !== 1]);
    let known = this.compiled.get(key);
    if (!known) {
      known = pipeline.createSampler({
        batchSize: s.count,
        count: s.count,
        steps: s.steps,
        ...(s.scheduler !== 'own' && { scheduler: s.scheduler }),
        ...(s.labels.length > 0 && { labels: [...labelsOf(s)] }),
        ...(pipeline.guidance && { guidanceScale: s.guidance }),
        size: pipeline.unet.sample_size ?? [64, 64],
        preview: true,
      });
      known.catch(() => this.compiled.delete(key));
    }
    // Newest last; two may run at once, so a few are kept.
    this.compiled.delete(key);
    this.compiled.set(key, known);
    for (const [old, promise] of [...this.compiled].slice(0, -4)) {
      this.compiled.delete(old);
      void promise.then((sampler) => sampler.destroy(), () => undefined);
    }
    return known;
  }

  private free(): void {
    this.stop();
    for (const canvas of [...this.runs.keys()]) this.forget(canvas);
    for (const promise of this.compiled.values()) void promise.then((sampler) => sampler.destroy(), () => undefined);
    this.compiled.clear();
    this.model?.pipeline.destroy();
    this.model = undefined;
  }
}

/** To the size of another, by its nearest pixels. */
function resized(frame: Frame, { width, height }: Frame): Frame {
  if (frame.width === width && frame.height === height) return frame;
  const rgba = new Uint8ClampedArray(width * height * 4);
  const [from, to] = [new Uint32Array(frame.rgba.buffer), new Uint32Array(rgba.buffer)];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) to[y * width + x] = from[Math.floor((y * frame.height) / height) * frame.width + Math.floor((x * frame.width) / width)]!;
  return { ...frame, width, height, rgba };
}

/** Image by image; a walk between seeds stays with one. */
const labelsOf = ({ labels, count, towards }: SampleSettings): Int32Array => Int32Array.from({ length: count }, (_, i) => labels[towards === undefined ? i % labels.length : 0]!);

const schedulerOf = (own: SchedulerConfig, name: SampleSettings['scheduler']): SchedulerConfig => (name === 'own' ? own : convertSchedulerConfig(own, schedulerNames[name]));

export const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;

/** Start noises on the great circle from one seed's to another's: every point of it is standard normal, as the points of a straight line are not. */
function between(from: number, to: number, shape: readonly [number, number, number, number]): Float32Array {
  const count = shape[0];
  const per = numel(shape) / count;
  const [a, b] = [from, to].map((seed) => normals(seed, { index: 0, step: 0, stream: RngStream.noise }, per));
  const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, v, i) => sum + v * y[i]!, 0);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a!, b!) / Math.sqrt(dot(a!, a!) * dot(b!, b!)))));
  const out = new Float32Array(numel(shape));
  for (let n = 0; n < count; n++) {
    const t = count > 1 ? n / (count - 1) : 0;
    const [wa, wb] = angle < 1e-3 ? [1 - t, t] : [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
    for (let i = 0; i < per; i++) out[n * per + i] = wa * a![i]! + wb * b![i]!;
  }
  return out;
}
