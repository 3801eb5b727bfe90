/** What the judge says of generated digits, in numbers. */
import { check } from '../src/engine/errors';
import { permutation } from '../src/engine/rng';
import { stratifiedSplit, subset } from '../src/data/dataset';
import { fitCanvas } from '../src/data/transform';
import type { TensorStore } from '../src/io/safetensors';
import type { DatasetSplit } from '../src/node/mnist';
import { accuracy, allDigits, classes, featureWidth, fitFeatures, pixels, side, type Judge } from './classifier';
import { fitGaussian, frechetDistance } from '../src/verify/frechet_distance';

/** Least accuracy, and largest ratio of Fréchet distances, that pass. */
export const limits = { accuracy: 0.96, ratio: 4 } as const;

export interface Samples {
  /** [N,1,28,28] in [0,1]. */
  readonly images: Float32Array;
  /** The digits that were asked for, [N]. */
  readonly labels: Int32Array;
}

/** Reads `images` [N,1,H,W] in [0,1], 28x28 or 32x32 (cropped by 2), and `labels` [N] from 0 to 9. */
export async function readSamples(file: TensorStore): Promise<Samples> {
  for (const name of ['images', 'labels']) check(file.tensors.has(name), 'input', () => `${file.name}: there is no tensor '${name}'; write samples with \`bruit sample --labels 0-9 --out FILE.safetensors\`.`);
  const { shape } = file.tensors.get('images')!;
  const [n, channels, height, width] = shape as [number, number, number, number];
  check(shape.length === 4 && channels === 1 && height === width && (height === side || height === side + 4), 'shape', () => `${file.name}: images are [${shape}]; digits of [N,1,28,28] or [N,1,32,32] are wanted.`);
  check(n >= 2, 'input', () => `${file.name}: ${n} images are too few for a covariance.`);
  const labels = await file.readI32('labels');
  check(labels.length === n, 'shape', () => `${file.name}: ${labels.length} labels for ${n} images.`);
  const odd = labels.findIndex((label) => label < 0 || label >= classes);
  check(odd < 0, 'input', () => `${file.name}: label ${odd} is ${labels[odd]}, no digit.`);
  const stored = await file.readF32('images');
  const bad = stored.findIndex((v) => !(v >= 0 && v <= 1));
  check(bad < 0, 'input', () => `${file.name}: pixel ${bad} is ${stored[bad]}; images are wanted in [0,1].`);
  const images = new Float32Array(n * pixels);
  for (let i = 0; i < n; i++) images.set(fitCanvas(stored.subarray(i * height * width, (i + 1) * height * width), [1, height, width], [side, side], 0), i * pixels);
  return { images, labels };
}

export interface Verdict {
  readonly images: number;
  /** Share read as the label asked for. */
  readonly accuracy: number;
  /** The same for each digit; null where none was asked for. */
  readonly accuracyPerClass: (number | null)[];
  /** Images that both distances are taken over: the distance shrinks with their number, so it must be the same. */
  readonly frechetImages: number;
  /** Of the samples to all real training digits. */
  readonly frechetDistance: number;
  /** Of real held-back digits to all real training digits. */
  readonly frechetDistanceHeldBack: number;
  readonly ratio: number;
  readonly passed: boolean;
}

/** Judges samples against `digits`; the selection of digits (and of samples, where there are more) is by `seed`. */
export async function evaluate({ classifier, reference }: Judge, { images, labels }: Samples, digits: DatasetSplit, onProgress?: (done: number, total: number) => void, seed = 0): Promise<Verdict> {
  const real = await allDigits(digits.heldBack);
  const count = Math.min(labels.length, real.labels.length);
  // Held-back digits lie sorted by class; a stratified part keeps the classes in proportion.
  const held = await allDigits(subset(digits.heldBack, stratifiedSplit(real.labels, count, seed).heldBack));
  const total = labels.length + count;
  const read = await classifier.read(images, (done) => onProgress?.(done, total));
  const heldRead = await classifier.read(held.images, (done) => onProgress?.(labels.length + done, total));

  const features = new Float32Array(count * featureWidth);
  permutation(labels.length, seed, {}).subarray(0, count).forEach((from, to) => features.set(read.features.subarray(from * featureWidth, (from + 1) * featureWidth), to * featureWidth));
  const distance = frechetDistance(fitGaussian(features, featureWidth), reference);
  const heldDistance = frechetDistance(fitFeatures(heldRead), reference);

  const share = accuracy(read.digits, labels);
  const ratio = distance / heldDistance;
  return {
    images: labels.length,
    accuracy: share,
    accuracyPerClass: Array.from({ length: classes }, (_, digit) => {
      const asked = Array.from(labels, (label, i) => (label === digit ? read.digits[i]! : -1)).filter((d) => d >= 0);
      return asked.length ? accuracy(asked, asked.map(() => digit)) : null;
    }),
    frechetImages: count,
    frechetDistance: distance,
    frechetDistanceHeldBack: heldDistance,
    ratio,
    passed: share >= limits.accuracy && ratio <= limits.ratio,
  };
}
