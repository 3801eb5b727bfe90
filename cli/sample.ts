import { existsSync, statSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Command } from 'commander';
import type { Engine } from '../src/engine/device';
import { BruitError } from '../src/engine/errors';
import { torchGenerator } from '../src/engine/torch_rng';
import type { ModelFolder } from '../src/io/folder';
import { encodePng, imageGrid, imageRaster } from '../src/io/png';
import { writeSafetensors } from '../src/io/safetensors';
import { packageRoot } from '../src/node/cache';
import { writableFolder, writeFileAtomic } from '../src/node/files';
import { openNamedModel } from './model';
import { writePngFolder } from '../src/node/png_folder';
import { Progress } from '../src/node/progress';
import { pipelineClass } from '../src/pipelines/component';
import type { DDPMPipeline, GenerateOptions, GeneratedImages } from '../src/pipelines/ddpm';
import { checkMemory, estimatePipeline } from '../src/pipelines/memory';
import type { PreviewDecoder } from '../src/pipelines/preview';
import type { SamplerPreview } from '../src/sampler/sample';
import { openEngine, print } from './engine';
import { showStorage } from './format';
import { families, type OpenFamily, type Part, type PartImages } from './sample_families';
import { shardPath, shardRange } from './shard';
import { addSampleOptions, checkTaken, type SampleOptions } from './sample_options';

/** A model that comes with the package: `digits` takes labels, `scenes` prompts. */
export const bundledModel = (name: 'digits' | 'scenes' = 'digits'): string => path.join(packageRoot(), 'models', name);

export function addSample(program: Command): void {
  const command = addSampleOptions(program.command('sample').description('generate images with a diffusion model; model_index.json says which pipeline it is'));
  command
    .addHelpText(
      'after',
      `
Examples:
  bruit sample --labels 0-9 --n 100 --out digits.png
  bruit sample --prompt "two threes side by side" --prompt "a thick slanted four" --n 16 --out scenes.png
  bruit sample --model out/run/checkpoint-00001000 --component unet_ema --labels 7 --n 16 --out sevens/
  bruit sample --n 500 --labels 0-9 --steps 50 --scheduler ddim --seed 1 --out samples.safetensors
  bruit sample --n 10000 --labels 0-9 --shard 3/16 --out samples/
  bruit sample --model stable-diffusion/ --prompt "a red fox in the snow" --steps 30 --scheduler dpmpp --n 4 --out fox/
  bruit sample --model stable-diffusion/ --prompt "a tiger" --image cat.png --strength 0.6 --lora ink.safetensors:0.8 --out tiger.png
  bruit sample --model IF-I/ --super-resolution IF-II/ --prompt "a sign that says bruit" --out sign.png`,
    )
    .action(async (asked: SampleOptions) => {
      const options = asked.shard ? { ...asked, out: shardPath(asked.out, asked.shard) } : asked;
      await checkOutputs(options);
      const model = options.model ?? bundledModel(options.prompt && !options.labels ? 'scenes' : 'digits');
      const folder = openNamedModel(model);
      const kind = await pipelineClass(folder);
      const family = families.find(({ classes }) => classes.test(kind));
      if (!family) throw new BruitError('input', `${model}: model_index.json names ${kind}, which bruit cannot run`);
      checkTaken(command, kind, family.takes);
      const open = await family.prepare(options);
      const engine = await openEngine({ tuned: true });
      let pipeline: OpenFamily | undefined;
      try {
        await refuseTooLarge(engine, folder, kind, options);
        for (const name of [...(options.superResolution ?? []), ...(options.refiner === undefined ? [] : [options.refiner])]) {
          const { controlnet: _, height: __, width: ___, ...rest } = options;
          const next = openNamedModel(name);
          await refuseTooLarge(engine, next, await pipelineClass(next), name === options.refiner ? { ...rest, height: options.height, width: options.width } : rest);
        }
        pipeline = await open(engine, folder);
        const range = options.shard && shardRange(options.shard, options.n ?? pipeline.count);
        if (range && range[0] === range[1]) return print(options.json, () => ({ out: options.out, shape: [0] }), () => 'no images for this shard');
        const result = await sampleParts(pipeline, options, range);
        await writeImages(options.out, result, { ...made(options), model, ...(range && { range }), adapter: engine.profile.name }, options.overwrite ?? false, range?.[0]);
        const weights = pipeline.storage?.();
        print(options.json, () => ({ out: options.out, shape: result.shape, adapter: engine.profile.name, pipeline: kind, ...(weights && { weights }) }), () => `${weights && options.weights !== 'auto' ? `${showStorage(weights)}\n` : ''}${result.shape[0]} images in ${options.out}`);
      } finally {
        await pipeline?.destroy();
        engine.destroy();
      }
    });
}

/** Before any weight is fetched. Memory of a GPU is unknown to WebGPU, but that of a software adapter is the machine's. */
async function refuseTooLarge(engine: Engine, folder: ModelFolder, kind: string, { batch = 1, height, width, guidanceScale, weights, vaeTiling, controlnet = [] }: Pick<SampleOptions, 'batch' | 'guidanceScale' | 'weights' | 'vaeTiling' | 'controlnet'> & { readonly height?: number | undefined; readonly width?: number | undefined }): Promise<void> {
  // A training run's folder has several U-Nets, and DDPM's batches are small.
  if (!/Diffusion|Consistency|^(DiT|IF|UnCLIP|LDM)/.test(kind)) return;
  const latent = /Diffusion|Consistency|^LDM/.test(kind) && height !== undefined && width !== undefined && { height, width };
  const memory = await estimatePipeline(folder, { profile: engine.profile, batch, weights: weights === 'auto' ? 'f16' : weights, ...latent, vaeTiling, ...(guidanceScale !== undefined && guidanceScale <= 1 && { guided: false }), controlnets: controlnet.map((name) => openNamedModel(name)) });
  checkMemory(memory, engine.profile, engine.profile.kind === 'software' ? os.totalmem() : undefined);
}

/** Looked at before the work starts; the writers look again. */
async function checkOutputs({ out, overwrite, shard, previews, previewDecoder }: SampleOptions): Promise<void> {
  // Shards share a folder.
  if (existsSync(out) && !overwrite && !(shard && statSync(out).isDirectory())) throw new BruitError('input', `${out} exists already; choose another --out or give --overwrite`);
  await writableFolder(/\.(png|safetensors)$/.test(out) ? path.dirname(out) : out);
  if (previews === undefined) {
    if (previewDecoder !== undefined) throw new BruitError('input', '--preview-decoder needs --previews');
    return;
  }
  if (existsSync(previews) && !overwrite && (await readdir(previews).catch(() => ['a file'])).length > 0) throw new BruitError('input', `${previews} exists already and is not an empty folder; choose another --previews or give --overwrite`);
  await writableFolder(previews);
}

/** What goes into the images' metadata: all that was asked for but where to put it. */
function made({ out: _, overwrite: __, json: ___, previews: ____, previewEvery: _____, keep: ______, shard: _______, ...options }: SampleOptions): Record<string, unknown> {
  return options as unknown as Record<string, unknown>;
}

/** The job in parts of --batch images, under a progress bar; Ctrl-C aborts cleanly. */
async function sampleParts(pipeline: OpenFamily, o: SampleOptions, range?: readonly [number, number]): Promise<GeneratedImages> {
  const [from, to] = range ?? [0, o.n ?? pipeline.count];
  const total = to - from;
  // One generator draws for all images, as diffusers' would.
  const generator = o.rng === 'bruit' ? undefined : torchGenerator(o.rng, o.seed);
  if (generator && (o.offset > 0 || range)) throw new BruitError('input', `${range ? '--shard' : '--offset'} has no meaning with --rng ${o.rng}: its draws depend on all that was drawn before`);
  const batch = Math.min(o.batch ?? (generator ? total : pipeline.batch), total);
  const parts = Math.ceil(total / batch);
  const previews = o.previews === undefined ? undefined : new Previews(o.previews, await pipeline.preview(), o);
  const abort = new AbortController();
  const interrupt = () => abort.abort();
  process.once('SIGINT', interrupt);
  let progress: Progress | undefined;
  let decoding: Progress | undefined;
  const done: PartImages[] = [];
  try {
    for (let first = from; first < to; first += batch) {
      const before = done.length;
      const part: Part = {
        first,
        count: Math.min(batch, to - first),
        seed: o.seed,
        sampleOffset: o.offset + first,
        generator,
        signal: abort.signal,
        onProgress: (step, steps) => {
          progress ??= new Progress({ total: steps * parts, label: 'sample', unit: 'step', json: o.json ?? false });
          progress.update(before * steps + step);
        },
        onDecode: (decoded, all) => {
          const count = Math.min(batch, to - first);
          const each = all / count; // tiles of an image, or one
          decoding ??= new Progress({ total: each * total, label: 'decode', unit: each > 1 ? 'tile' : 'image', json: o.json ?? false });
          decoding.update((first - from) * each + decoded);
        },
        onPreview: previews && ((preview) => previews.add(preview, o.offset + first, Math.min(batch, to - first))),
      };
      done.push(await pipeline.run(part));
      await previews?.settled();
    }
  } finally {
    progress?.finish();
    decoding?.finish();
    process.off('SIGINT', interrupt);
    previews?.destroy();
  }
  return joinParts(done);
}

function joinParts(parts: readonly PartImages[]): GeneratedImages {
  const images = new Float32Array(parts.reduce((n, p) => n + p.images.length, 0));
  const labels = parts[0]!.labels && new Int32Array(parts.reduce((n, p) => n + p.labels!.length, 0));
  let [at, label] = [0, 0];
  for (const part of parts) {
    images.set(part.images, at);
    at += part.images.length;
    labels?.set(part.labels!, label);
    label += part.labels?.length ?? 0;
  }
  const [, ...rest] = parts[0]!.shape;
  return { images, shape: [images.length / rest.reduce((a, b) => a * b), ...rest], labels };
}

/** Decodes and writes predictions while the pipeline goes on. */
class Previews {
  private readonly pending: Promise<void>[] = [];
  private step = 0;

  constructor(
    private readonly folder: string,
    private readonly decoder: PreviewDecoder,
    private readonly options: SampleOptions,
  ) {}

  /** Steps are numbered through all stages of a part. */
  add({ step, total, x0, shape }: SamplerPreview, firstImage: number, count: number): void {
    const number = this.step++;
    if ((step + 1) % this.options.previewEvery && step + 1 < total) return;
    this.pending.push(this.write(x0, shape, number, firstImage, count));
    // Awaited when the part is done; a failure must not count as unhandled until then.
    this.pending[this.pending.length - 1]!.catch(() => undefined);
  }

  private async write(x0: Float32Array, shape: SamplerPreview['shape'], step: number, firstImage: number, count: number): Promise<void> {
    const images = await this.decoder.decode(x0, shape);
    for (let i = 0; i < count; i++) {
      const file = `${String(firstImage + i).padStart(5, '0')}-${String(step).padStart(4, '0')}.png`;
      await writeFileAtomic(path.join(this.folder, file), encodePng(imageRaster(images, i)));
    }
  }

  /** All of a part are written. */
  async settled(): Promise<void> {
    await Promise.all(this.pending.splice(0));
    this.step = 0;
  }

  destroy(): void {
    this.decoder.destroy();
  }
}

/** Generates under a progress bar; Ctrl-C aborts cleanly. */
export async function generateWithProgress(pipeline: DDPMPipeline, options: GenerateOptions, json: boolean): Promise<GeneratedImages> {
  const abort = new AbortController();
  const interrupt = () => abort.abort();
  process.once('SIGINT', interrupt);
  let progress: Progress | undefined;
  try {
    return await pipeline.generate({
      ...options,
      signal: abort.signal,
      onProgress: (done, total) => {
        progress ??= new Progress({ total, label: 'sample', unit: 'step', json });
        progress.update(done);
      },
    });
  } finally {
    progress?.finish();
    process.off('SIGINT', interrupt);
  }
}

/** Writes images as the extension of `out` says, with what made them in the metadata; in a folder, image `first` and on. */
export async function writeImages(out: string, { images, shape, labels }: GeneratedImages, made: Record<string, unknown>, overwrite: boolean, first = 0): Promise<void> {
  const batch = { data: images, shape };
  const text = { Software: 'bruit', parameters: JSON.stringify(made) };
  if (out.endsWith('.safetensors')) {
    const tensors = [{ name: made.outputType === 'latent' ? 'latents' : 'images', dtype: 'F32' as const, shape: [...shape], data: images }];
    await mkdir(path.dirname(out), { recursive: true });
    await writeFileAtomic(out, writeSafetensors(labels ? [...tensors, { name: 'labels', dtype: 'I32' as const, shape: [labels.length], data: labels }] : tensors, { parameters: text.parameters }), { overwrite });
  } else if (out.endsWith('.png')) {
    await mkdir(path.dirname(out), { recursive: true });
    const columns = labels && shape[0] > 10 && shape[0] % 10 === 0 ? 10 : Math.ceil(Math.sqrt(shape[0]));
    const scale = Math.max(1, Math.floor(56 / shape[3]));
    await writeFileAtomic(out, encodePng(imageGrid(batch, { columns, scale, ...(labels && { labels: Array.from(labels, String) }) }), text), { overwrite });
  } else {
    await writePngFolder(out, batch, { start: first, overwrite, text: (i) => (labels ? { ...text, label: String(labels[i - first]) } : text) });
  }
}
