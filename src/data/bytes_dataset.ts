/** Grey images kept as bytes, such as MNIST's digits. */
import { check } from '../engine/errors';
import { checkIndex, padDataset, stratifiedSplit, subset, type ImageDataset } from './dataset';
import { bytesToSigned } from './transform';

/** Height and width of MNIST's images. */
export const MNIST_SIDE = 28;
export const DIGITS = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'];

export interface MnistOptions {
  /** 28 (default), or 32 for a black border of 2. */
  readonly size?: 28 | 32;
  /** Items held back from training, in proportion to the classes; default 1,000 for the package, 0 for IDX files. */
  readonly heldBack?: number;
  /** Of the split; default 0. */
  readonly seed?: number;
}

/** A data set and the part of it that training must not see. */
export interface DatasetSplit {
  readonly train: ImageDataset;
  readonly heldBack: ImageDataset;
}

/** Grey images as bytes, [N,H,W], white on black, with a label each. */
export interface LabelledBytes {
  readonly pixels: Uint8Array;
  readonly labels: Uint8Array;
  readonly height: number;
  readonly width: number;
}

/** Images kept as bytes (a quarter of f32) and turned into [1,H,W] f32 in [-1,1] when asked for. */
export function bytesDataset(name: string, { pixels, labels, height, width }: LabelledBytes): ImageDataset {
  const size = height * width;
  return {
    name,
    length: labels.length,
    shape: [1, height, width],
    classes: DIGITS,
    async get(index) {
      checkIndex(index, labels.length, name);
      return { image: bytesToSigned(pixels.subarray(index * size, (index + 1) * size)), label: labels[index]! };
    },
  };
}

/** The part to train on and the part held back, at 28 or, padded, 32 pixels. */
export function splitDigits(all: ImageDataset, labels: Uint8Array, { size = MNIST_SIDE, heldBack = 0, seed = 0 }: MnistOptions): DatasetSplit {
  check(size === 28 || size === 32, 'input', () => `mnist: size ${size as number} is not 28 or 32.`);
  const data = size === all.shape[1] ? all : padDataset(all, [size, size]);
  const parts = stratifiedSplit(labels, heldBack, seed);
  return { train: subset(data, parts.train, `${all.name}/train`), heldBack: subset(data, parts.heldBack, `${all.name}/held-back`) };
}
