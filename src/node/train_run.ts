/** Running a recipe from disk to disk: data, checkpoints, metrics, loss curve, resuming. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { BatchLoader, type ImageDataset } from '../data/dataset';
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { encodePng, imageGrid } from '../io/png';
import { parseTrainConfig, type TrainConfig } from '../train/config';
import { emaSampler, type EmaSampler } from '../train/ema_sampler';
import type { StepMetrics } from '../train/step';
import { Trainer } from '../train/trainer';
import { appendJsonl, fileError, writeFileAtomic } from './files';
import { loadImageFolder } from './image_folder';
import { loadIdxFolder, loadMnist } from './mnist';
import { plotMetrics, readMetrics } from './plot';
import { listCheckpoints, loadCheckpoint, saveCheckpoint } from './run_directory';

/** The training part of a recipe's data, and what is held back where the source can say. */
export async function loadRecipeData({ data, model, seed }: TrainConfig): Promise<{ train: ImageDataset; heldBack: ImageDataset | undefined }> {
  if (data.source === 'folder') return { train: await loadImageFolder(data.path!, { size: data.size, channels: model.in_channels as 1 | 3 }), heldBack: undefined };
  if (data.size !== 28 && data.size !== 32) throw new BruitError('config', `data: size ${data.size}: MNIST comes as 28 or, padded, 32`);
  const options = { size: data.size as 28 | 32, heldBack: data.heldBack, seed };
  return data.source === 'idx' ? loadIdxFolder(data.path!, 'train', options) : loadMnist(options);
}

export interface TrainRunOptions {
  readonly recipe: string;
  readonly out: string;
  /** Go on from the newest checkpoint in `out`. */
  readonly resume?: boolean;
  /** Start over in a folder that holds a run. */
  readonly overwrite?: boolean;
  /** Instead of the recipe's number of steps; the learning-rate schedule stays the recipe's. */
  readonly stopAfter?: number;
  readonly signal?: AbortSignal;
  readonly onStart?: (trainer: Trainer, total: number) => void;
  readonly onMetrics?: (metrics: readonly StepMetrics[]) => void;
  readonly onCheckpoint?: (dir: string) => void | Promise<void>;
}

export interface TrainRunResult {
  readonly steps: number;
  readonly checkpoint: string | undefined;
  readonly lossCurve: string;
  /** Mean loss of the last 100 steps. */
  readonly loss: number;
}

export async function runTraining(engine: Engine, o: TrainRunOptions): Promise<TrainRunResult> {
  let text: string;
  try {
    text = await readFile(o.recipe, 'utf8');
  } catch (e) {
    throw fileError('read the recipe', o.recipe, e);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (e) {
    throw new BruitError('config', `${o.recipe} is not JSON: ${(e as Error).message}`, { cause: e });
  }
  const config = parseTrainConfig(json, o.recipe);

  const known = await listCheckpoints(o.out);
  const metricsFile = path.join(o.out, 'metrics.jsonl');
  if (o.resume && known.length === 0) throw new BruitError('input', `--resume: ${o.out} holds no finished checkpoint`);
  if (!o.resume && !o.overwrite && (known.length > 0 || existsSync(metricsFile))) throw new BruitError('input', `${o.out} already holds a training run: go on with --resume, start over with --overwrite, or choose another --out`);
  if (!o.resume && o.overwrite) await Promise.all([...known.map((c) => rm(c.path, { recursive: true })), rm(metricsFile, { force: true })]);

  const { train } = await loadRecipeData(config);
  const loader = new BatchLoader(train, { batchSize: config.batchSize, seed: config.seed, flip: config.data.flip ? 0.5 : 0 });
  const trainer = await Trainer.create(engine, config, train, loader);
  try {
    const newest = known[known.length - 1];
    if (o.resume && newest) {
      const { state, tensors } = await loadCheckpoint(newest.path);
      trainer.restore(state, tensors);
      // Steps after the checkpoint are run again: their lines go.
      const kept = (await readMetrics(metricsFile).catch(() => [])).filter((m) => m.step < state.step);
      await writeFile(metricsFile, kept.map((m) => `${JSON.stringify(m)}\n`).join(''));
    }
    await mkdir(o.out, { recursive: true });
    await writeFileAtomic(path.join(o.out, 'recipe.json'), text);
    await writeFileAtomic(path.join(o.out, 'run.json'), `${JSON.stringify({ adapter: engine.profile.name, data: train.name, images: train.length, weights: trainer.step.weights.count }, null, 2)}\n`);
    const total = Math.min(config.steps, o.stopAfter ?? Infinity);
    o.onStart?.(trainer, total);
    let checkpoint = newest?.path;
    const grids = config.sampleEvery > 0 ? await SampleGrids.create(engine, trainer, train) : undefined;
    let losses: number[] = [];
    await trainer.train({
      until: total,
      ...(o.signal && { signal: o.signal }),
      onMetrics: async (metrics) => {
        losses = [...losses, ...metrics.map((m) => m.loss)].slice(-100);
        await appendJsonl(metricsFile, ...metrics.map((m) => ({ step: m.step, loss: m.loss, lr: m.learningRate, grad_norm: m.gradNorm, ...(m.skipped && { skipped: true }) })));
        o.onMetrics?.(metrics);
      },
      onSample: async (t) => {
        await mkdir(path.join(o.out, 'samples'), { recursive: true });
        await writeFileAtomic(path.join(o.out, 'samples', `step-${String(t.stepsDone).padStart(8, '0')}.png`), await grids!.render());
      },
      onCheckpoint: async (t) => {
        checkpoint = await saveCheckpoint(o.out, config, await t.readState(), await t.readTensors());
        await o.onCheckpoint?.(checkpoint);
      },
    });
    grids?.destroy();
    const lossCurve = path.join(o.out, 'loss.png');
    await writeFileAtomic(lossCurve, await plotMetrics(await readMetrics(metricsFile), { title: 'Training loss', subtitle: `${train.name}, batch ${config.batchSize}` }));
    return { steps: trainer.stepsDone, checkpoint, lossCurve, loss: losses.reduce((a, b) => a + b, 0) / Math.max(losses.length, 1) };
  } finally {
    trainer.destroy();
  }
}

/** Pictures of what the EMA weights have learnt, always from the same seed: compiled once, drawn every `sample_every` steps. */
class SampleGrids {
  private constructor(private readonly samples: EmaSampler) {}

  static async create(engine: Engine, trainer: Trainer, dataset: ImageDataset): Promise<SampleGrids> {
    const labelled = trainer.config.model.num_class_embeds !== null;
    return new SampleGrids(await emaSampler(engine, trainer, { count: labelled ? 20 : 16, classes: dataset.classes?.length ?? 0 }));
  }

  async render(): Promise<Uint8Array> {
    const { sampler, shape, labels } = this.samples;
    await sampler.run();
    // [-1,1] to [0,1]
    const data = (await sampler.read()).map((v) => Math.min(Math.max(v / 2 + 0.5, 0), 1));
    return encodePng(imageGrid({ data, shape }, { ...(labels && { columns: 10, labels: Array.from(labels, String) }) }));
  }

  destroy(): void {
    this.samples.sampler.destroy();
  }
}
