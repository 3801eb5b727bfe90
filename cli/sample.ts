import { existsSync, statSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { Option, type Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { urlFolder } from '../src/io/folder';
import { encodePng, imageGrid } from '../src/io/png';
import { writeSafetensors } from '../src/io/safetensors';
import { directory } from '../src/node/directory';
import { writeFileAtomic } from '../src/node/files';
import { packageRoot } from '../src/node/cache';
import { writePngFolder } from '../src/node/png_folder';
import { Progress } from '../src/node/progress';
import { DDPMPipeline, schedulerNames, type GenerateOptions, type GeneratedImages, type SchedulerName } from '../src/pipelines/ddpm';
import { weightStorages, type WeightStorage } from '../src/model/weight_format';
import { number, positiveInteger, wholeNumber } from './arguments';
import { openEngine, print } from './engine';
import { showStorage } from './format';
import { shard, shardPath, shardRange, type Shard } from './shard';

interface Options {
  model?: string;
  component: string;
  weights: WeightStorage;
  n?: number;
  labels?: number[];
  steps: number;
  scheduler?: SchedulerName;
  eta?: number;
  guidance?: number;
  seed: number;
  offset: number;
  batch: number;
  shard?: Shard;
  out: string;
  overwrite?: boolean;
  json?: boolean;
}

/** `3`, `0,4,7` or `0-9`, in any mixture. */
function labelList(text: string): number[] {
  return text.split(',').flatMap((part) => {
    const range = /^(\d+)-(\d+)$/.exec(part);
    if (range) {
      const [from, to] = [Number(range[1]), Number(range[2])];
      return Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => from + i);
    }
    if (!/^\d+$/.test(part)) throw new BruitError('input', `--labels ${text}: "${part}" is neither a number nor a range such as 0-9`);
    return [Number(part)];
  });
}

/** The digit model that comes with the package. */
export const bundledModel = (): string => path.join(packageRoot(), 'models', 'digits');

export function addSample(program: Command): void {
  program
    .command('sample')
    .description('generate images with a diffusion model')
    .option('--model <dir|url>', "folder in diffusers' layout; the bundled digit model by default")
    .option('--component <name>', 'sub-folder of the weights (a training run has unet and unet_ema)', 'unet')
    .addOption(new Option('--weights <format>', 'how weights lie in GPU memory: as the checkpoint has them, or in one format (int8 and int4 round)').choices(weightStorages).default('auto'))
    .option('--n <count>', 'number of images; one per label by default', positiveInteger)
    .option('--labels <list>', 'classes to draw, repeated up to --n: 3 or 0,4,7 or 0-9', labelList)
    .option('--steps <count>', 'denoising steps', positiveInteger, 50)
    .addOption(new Option('--scheduler <name>', "instead of the model's own").choices(Object.keys(schedulerNames)))
    .option('--eta <number>', 'DDIM: 0 deterministic, 1 as noisy as DDPM', number)
    .option('--guidance <scale>', "classifier-free guidance, 1 for none; the model's own by default", number)
    .option('--seed <number>', 'image i depends on the seed and i alone', wholeNumber, 0)
    .option('--offset <number>', 'number of the first image: parts of a large job can be computed apart', wholeNumber, 0)
    .option('--batch <count>', 'images computed at once', positiveInteger, 32)
    .option('--shard <index/count>', 'make one part of the job, from 0/COUNT to COUNT-1/COUNT: all parts together are what one machine makes', shard)
    .requiredOption('--out <path>', 'a grid as .png, tensors as .safetensors, or a folder of PNGs')
    .option('--overwrite', 'replace existing output')
    .option('--json', 'progress as JSON lines on stderr, the result as JSON on stdout')
    .addHelpText('after', '\nExamples:\n  bruit sample --labels 0-9 --n 100 --out digits.png\n  bruit sample --model out/run/checkpoint-00001000 --component unet_ema --labels 7 --n 16 --out sevens/\n  bruit sample --n 500 --labels 0-9 --steps 50 --scheduler ddim --seed 1 --out samples.safetensors\n  bruit sample --n 10000 --labels 0-9 --shard 3/16 --out samples/')
    .action(async (given: Options) => {
      const options = given.shard ? { ...given, out: shardPath(given.out, given.shard) } : given;
      const range = options.shard && shardRange(options.shard, options.n ?? options.labels?.length ?? 1);
      if (range && range[0] === range[1]) return print(options.json, () => ({ out: options.out, shape: [0] }), () => 'no images for this shard');
      // Looked at before the work starts; the writers look again. Shards share a folder.
      if (existsSync(options.out) && !options.overwrite && !(range && statSync(options.out).isDirectory())) throw new BruitError('input', `${options.out} exists already; choose another --out or give --overwrite`);
      const engine = await openEngine({ tuned: true });
      let pipeline: DDPMPipeline | undefined;
      try {
        const model = options.model ?? bundledModel();
        pipeline = await DDPMPipeline.fromFolder(engine, /^https?:\/\//.test(model) ? urlFolder(model) : directory(model), { component: options.component, weights: options.weights });
        const result = await sampleWithProgress(pipeline, options, range);
        await writeImages(options.out, result, { ...parameters(options, model), ...(range && { range }), adapter: engine.profile.name }, options.overwrite ?? false, range?.[0]);
        const storage = pipeline.weights.storageReport();
        print(options.json, () => ({ out: options.out, shape: result.shape, adapter: engine.profile.name, weights: storage }), () => `${options.weights === 'auto' ? '' : `${showStorage(storage)}\n`}${result.shape[0]} images in ${options.out}`);
      } finally {
        pipeline?.destroy();
        engine.destroy();
      }
    });
}

const parameters = ({ labels, steps, scheduler, eta, guidance, seed, offset }: Options, model: string) => ({ model, labels, steps, scheduler, eta, guidance, seed, offset });

async function sampleWithProgress(pipeline: DDPMPipeline, o: Options, range: readonly [number, number] | undefined): Promise<GeneratedImages> {
  const generate: GenerateOptions = {
    ...(o.n !== undefined && { count: o.n }),
    ...(o.labels && { labels: o.labels }),
    steps: o.steps,
    ...(o.scheduler && { scheduler: o.scheduler }),
    ...(o.eta !== undefined && { schedulerOptions: { eta: o.eta } }),
    ...(o.guidance !== undefined && { guidanceScale: o.guidance }),
    seed: o.seed,
    sampleOffset: o.offset,
    batchSize: o.batch,
    ...(range && { range }),
  };
  return generateWithProgress(pipeline, generate, o.json ?? false);
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
    const tensors = [{ name: 'images', dtype: 'F32' as const, shape: [...shape], data: images }];
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
