import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadIdx, loadIdxFolder, loadMnist, readIdx } from '../../src/node/mnist';
import { BruitError } from '../../src/engine/errors';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bruit-mnist-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** An IDX file; `type` and `shape` may lie about `data`. */
function idx(shape: number[], data: ArrayLike<number>, type = 8): Uint8Array {
  const bytes = new Uint8Array(4 + 4 * shape.length + data.length);
  bytes.set([0, 0, type, shape.length]);
  shape.forEach((n, i) => new DataView(bytes.buffer).setUint32(4 + 4 * i, n));
  bytes.set(data, 4 + 4 * shape.length);
  return bytes;
}

async function file(name: string, bytes: Uint8Array): Promise<string> {
  await writeFile(join(folder, name), bytes);
  return join(folder, name);
}

test('the package: 9,000 + 1,000 digits, all classes, in [-1,1], the same split each time', async () => {
  const { train, heldBack } = await loadMnist();
  expect([train.length, heldBack.length, train.shape, train.classes?.length]).toEqual([9000, 1000, [1, 28, 28], 10]);
  const counts = new Array<number>(10).fill(0);
  const seen = new Set<string>();
  for (let i = 0; i < heldBack.length; i++) {
    const { image, label } = await heldBack.get(i);
    counts[label]!++;
    seen.add(image.join());
    expect(image.length).toBe(784);
    expect(image.every((v) => v >= -1 && v <= 1)).toBe(true);
  }
  expect(Math.min(...counts)).toBeGreaterThanOrEqual(86); // 863 fives
  expect(Math.max(...counts)).toBeLessThanOrEqual(113); // 1127 ones
  for (let i = 0; i < train.length; i++) expect(seen.has((await train.get(i)).image.join())).toBe(false); // nothing leaks
  const again = await loadMnist({ size: 32, heldBack: 1000, seed: 0 });
  const [small, padded] = [(await heldBack.get(500)).image, (await again.heldBack.get(500)).image];
  expect(padded.length).toBe(1024);
  for (let y = 0; y < 32; y++) {
    for (let x = 0; x < 32; x++) expect(padded[y * 32 + x]).toBe(y >= 2 && y < 30 && x >= 2 && x < 30 ? small[(y - 2) * 28 + x - 2] : -1);
  }
});

test('the package: digits stand upright, with values of whole bytes', async () => {
  const { train } = await loadMnist();
  const means = Array.from({ length: 10 }, () => new Float64Array(784));
  for (let i = 0; i < train.length; i += 3) {
    const { image, label } = await train.get(i);
    image.forEach((v, p) => (means[label]![p]! += (v + 1) / 2));
    expect(Math.abs(((image[400]! + 1) * 127.5) % 1 - Math.round(((image[400]! + 1) * 127.5) % 1))).toBeLessThan(1e-4);
  }
  const ink = (digit: number, rows: [number, number], columns: [number, number]): number => {
    let sum = 0;
    for (let y = rows[0]; y < rows[1]; y++) for (let x = columns[0]; x < columns[1]; x++) sum += means[digit]![y * 28 + x]!;
    return sum;
  };
  expect(ink(7, [4, 12], [0, 28])).toBeGreaterThan(1.5 * ink(7, [18, 26], [0, 28])); // the bar of a 7 is on top,
  expect(ink(7, [11, 17], [14, 28])).toBeGreaterThan(1.5 * ink(7, [11, 17], [0, 14])); // its stem hangs from the right,
  expect(ink(6, [14, 26], [14, 28])).toBeGreaterThan(1.2 * ink(6, [4, 12], [14, 28])); // and a 6 is round at the bottom right
});

test('IDX: plain and gzipped pairs give the same images', async () => {
  const pixels = Array.from({ length: 3 * 6 }, (_, i) => (i * 40) % 256);
  await file('train-images-idx3-ubyte', idx([3, 2, 3], pixels));
  await file('train-labels-idx1-ubyte.gz', gzipSync(idx([3], [7, 0, 9])));
  await file('t10k-images.idx3-ubyte.gz', gzipSync(idx([3, 28, 28], new Uint8Array(3 * 784).fill(255))));
  await file('t10k-labels.idx1-ubyte', idx([3], [1, 2, 3]));
  const { train } = await loadIdx(join(folder, 'train-images-idx3-ubyte'), join(folder, 'train-labels-idx1-ubyte.gz'), { size: 32 });
  expect([train.length, train.shape]).toEqual([3, [1, 32, 32]]);
  const { image, label } = await train.get(1);
  expect(label).toBe(0);
  expect(image[15 * 32 + 14]).toBeCloseTo(pixels[6]! / 127.5 - 1, 6);
  const test10k = await loadIdxFolder(folder, 't10k', { heldBack: 1 });
  expect([test10k.train.length, test10k.heldBack.length]).toEqual([2, 1]);
  expect((await test10k.train.get(0)).image.every((v) => v === 1)).toBe(true);
  await expect(loadIdxFolder(join(folder, 'nowhere'))).rejects.toThrow(/has none of train-images-idx3-ubyte, train-images-idx3-ubyte.gz/);
});

const good = idx([2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]);
test.each<[string, Uint8Array, RegExp]>([
  ['empty', new Uint8Array(0), /0 bytes are too few/],
  ['png', Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 1, 2, 3, 4), /starts with 89 50 4e 47, not 00 00 08/],
  ['floats', idx([2], [0, 0, 0, 0, 0, 0, 0, 0], 0x0d), /IDX type 0x0d/],
  ['rank-0', Uint8Array.of(0, 0, 8, 0), /has 0 dimensions/],
  ['rank-200', Uint8Array.of(0, 0, 8, 200, 0, 0, 0, 1), /has 200 dimensions/],
  ['header-cut', good.subarray(0, 10), /ends inside its header of 16 bytes/],
  ['cut-short', good.subarray(0, good.length - 1), /says \[2,2,2\], 8 bytes, but 7 follow: it is cut short/],
  ['too-long', new Uint8Array([...good, 0]), /8 bytes, but 9 follow/],
  ['huge', idx([0xffffffff, 0xffffffff, 0xffffffff], [1]), /but 1 follow/],
  ['gz-cut', gzipSync(good).subarray(0, 20), /cannot be unpacked/],
])('IDX: a malformed file (%s) is a precise error', async (name, bytes, message) => {
  const path = await file(name, bytes);
  const error = await readIdx(path).then(() => undefined, (e: unknown) => e);
  expect(error).toBeInstanceOf(BruitError);
  expect((error as Error).message).toMatch(message);
  expect((error as Error).message).toContain(path);
});

test('IDX: pairs that do not belong together are refused', async () => {
  const images = await file('images', good);
  const pair = async (labels: Uint8Array): Promise<unknown> => loadIdx(images, await file('labels', labels));
  await expect(pair(idx([3], [1, 2, 3]))).rejects.toThrow(/has 2 images, but .*labels has 3 labels/);
  await expect(pair(idx([2], [1, 10]))).rejects.toThrow(/label 1 is 10, not a digit/);
  await expect(pair(good)).rejects.toThrow(/labels have \[count\]/);
  await expect(loadIdx(await file('flat', idx([2], [1, 2])), images)).rejects.toThrow(/images have \[count, height, width\]/);
  await expect(loadIdx(join(folder, 'missing'), images)).rejects.toThrow(/missing: there is no such file/);
});
