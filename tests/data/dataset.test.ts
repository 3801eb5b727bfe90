import { expect, test } from 'vitest';
import { BatchLoader, padDataset, resizeDataset, stratifiedSplit, subset, type Batch, type BatchLoaderOptions, type ImageDataset } from '../../src/data/dataset';
import { fitCanvas, resizeImage } from '../../src/data/transform';

/** Item i of class i % 3: its pixels are i*100 + position, so that order and flips can be read off. */
function counting(length: number, shape: [number, number, number] = [1, 2, 3], onGet?: (index: number) => void): ImageDataset {
  return {
    name: 'counting',
    length,
    shape,
    classes: ['a', 'b', 'c'],
    get: async (index) => {
      onGet?.(index);
      await new Promise((done) => setTimeout(done, (index * 7) % 3)); // items finish out of order
      return { image: Float32Array.from({ length: shape[0] * shape[1] * shape[2] }, (_, p) => index * 100 + p), label: index % 3 };
    },
  };
}

async function take(loader: BatchLoader, count: number): Promise<Batch[]> {
  const batches: Batch[] = [];
  for (let i = 0; i < count; i++) batches.push(await loader.next());
  return batches;
}

const indicesOf = (batches: Batch[]): number[][] => batches.map((b) => Array.from(b.indices));

test('every epoch visits every item once, in a new order, with its label and pixels', async () => {
  const loader = new BatchLoader(counting(11), { batchSize: 4, dropLast: false, seed: 3 });
  expect(loader.batchesPerEpoch).toBe(3);
  const epochs = [await take(loader, 3), await take(loader, 3)];
  for (const [e, epoch] of epochs.entries()) {
    expect(epoch.map((b) => b.labels.length)).toEqual([4, 4, 3]);
    expect(epoch.flatMap((b) => Array.from(b.indices)).sort((a, b) => a - b)).toEqual(Array.from({ length: 11 }, (_, i) => i));
    for (const batch of epoch) {
      expect(batch.epoch).toBe(e);
      batch.indices.forEach((index, n) => {
        expect(batch.labels[n]).toBe(index % 3);
        expect(Array.from(batch.images.subarray(n * 6, n * 6 + 6))).toEqual([0, 1, 2, 3, 4, 5].map((p) => index * 100 + p));
      });
    }
  }
  expect(indicesOf(epochs[0]!)).not.toEqual(indicesOf(epochs[1]!));
});

test('the order depends on the seed alone, not on prefetching', async () => {
  const orders = await Promise.all(
    ([{ prefetch: 0 }, { prefetch: 5 }, { seed: 1 }] as Partial<BatchLoaderOptions>[]).map(async (o) => indicesOf(await take(new BatchLoader(counting(20), { batchSize: 6, ...o }), 8))),
  );
  expect(orders[0]).toEqual(orders[1]);
  expect(orders[0]).not.toEqual(orders[2]);
  const plain = await take(new BatchLoader(counting(5), { batchSize: 2, shuffle: false }), 3);
  expect(indicesOf(plain)).toEqual([[0, 1], [2, 3], [0, 1]]); // dropLast leaves out item 4
});

test.each([0, 1, 4, 5, 9])('a loader restored after %i batches goes on with the very same batches', async (done) => {
  const options = { batchSize: 3, seed: 8, flip: 0.5, dropLast: false };
  const whole = await take(new BatchLoader(counting(13), options), 16);
  const first = new BatchLoader(counting(13), options);
  await take(first, done);
  const state = JSON.parse(JSON.stringify(first.state())) as ReturnType<BatchLoader['state']>;
  const second = new BatchLoader(counting(13), options);
  await take(second, 2); // what it did before must not matter
  second.restore(state);
  expect(await take(second, 16 - done)).toEqual(whole.slice(done));
});

test('a state of other data or options is refused by name', () => {
  const state = new BatchLoader(counting(13), { batchSize: 3 }).state();
  expect(() => new BatchLoader(counting(14), { batchSize: 4 }).restore(state)).toThrow(/length was 13, now 14; batchSize was 3, now 4/);
  expect(() => new BatchLoader(counting(13), { batchSize: 3 }).restore({ ...state, batch: 4 })).toThrow(/epoch 0 batch 4, does not exist/);
});

test('flips mirror rows, about half of the items, keyed by seed, epoch and item', async () => {
  const flipped = async (options: Partial<BatchLoaderOptions>, epochs = 1): Promise<string> => {
    const loader = new BatchLoader(counting(200), { batchSize: 50, flip: 0.5, ...options });
    const out: string[][] = [];
    for (const batch of await take(loader, 4 * epochs)) {
      batch.indices.forEach((index, n) => {
        const offsets = Array.from(batch.images.subarray(n * 6, n * 6 + 6), (v) => v - index * 100).join();
        expect(['0,1,2,3,4,5', '2,1,0,5,4,3']).toContain(offsets);
        (out[batch.epoch] ??= [])[index] = offsets === '0,1,2,3,4,5' ? '.' : 'F';
      });
    }
    return out.map((o) => o.join('')).join('\n');
  };
  const reference = await flipped({});
  const count = [...reference].filter((c) => c === 'F').length;
  expect(count).toBeGreaterThan(70);
  expect(count).toBeLessThan(130);
  expect(await flipped({ shuffle: false, batchSize: 50 })).toBe(reference); // not by place in the batch
  expect(await flipped({ seed: 1 })).not.toBe(reference);
  const [first, second] = (await flipped({}, 2)).split('\n');
  expect(first).toBe(reference);
  expect(second).not.toBe(first);
  expect(await flipped({ flip: 0 })).toBe('.'.repeat(200));
  expect(await flipped({ flip: 1 })).toBe('F'.repeat(200));
});

test('batches ahead are loaded before they are asked for', async () => {
  const loaded: number[] = [];
  const loader = new BatchLoader(counting(12, [1, 2, 3], (i) => loaded.push(i)), { batchSize: 2, shuffle: false, prefetch: 2 });
  await loader.next();
  expect(loaded).toEqual([0, 1, 2, 3, 4, 5]);
  await loader.next();
  expect(loaded.length).toBe(8); // one more, none twice
});

test('an item that cannot be read rejects the batch that holds it, and no other', async () => {
  const broken = counting(6, [1, 2, 3], (i) => {
    if (i === 3) throw new Error('item 3 is damaged');
  });
  const loader = new BatchLoader(broken, { batchSize: 2, shuffle: false });
  await loader.next();
  await expect(loader.next()).rejects.toThrow('item 3 is damaged');
  expect(Array.from((await loader.next()).indices)).toEqual([4, 5]);
});

test('epoch() yields what is left of the current epoch', async () => {
  const loader = new BatchLoader(counting(12), { batchSize: 4, shuffle: false });
  await loader.next();
  const rest: Batch[] = [];
  for await (const batch of loader.epoch()) rest.push(batch);
  expect(indicesOf(rest)).toEqual([[4, 5, 6, 7], [8, 9, 10, 11]]);
  expect(loader.state()).toMatchObject({ epoch: 1, batch: 0 });
});

test.each<[Partial<BatchLoaderOptions>, RegExp]>([
  [{ batchSize: 0 }, /batch size 0/],
  [{ batchSize: 9 }, /5 images do not fill one batch of 9/],
  [{ flip: 1.5 }, /flip 1.5/],
  [{ prefetch: -1 }, /prefetch -1/],
])('options %j are refused', (options, message) => {
  expect(() => new BatchLoader(counting(5), { batchSize: 2, ...options })).toThrow(message);
});

test('stratifiedSplit keeps the proportions, the count and the seed', () => {
  const labels = Array.from({ length: 1000 }, (_, i) => (i < 100 ? 0 : i < 333 ? 1 : 2));
  const { train, heldBack } = stratifiedSplit(labels, 100, 5);
  expect([...train, ...heldBack].sort((a, b) => a - b)).toEqual(labels.map((_, i) => i));
  expect([0, 1, 2].map((c) => heldBack.filter((i) => labels[i] === c).length)).toEqual([10, 23, 67]);
  expect(stratifiedSplit(labels, 100, 5).heldBack).toEqual(heldBack);
  expect(stratifiedSplit(labels, 100, 6).heldBack).not.toEqual(heldBack);
  expect(stratifiedSplit(labels, 0).train.length).toBe(1000);
  expect(() => stratifiedSplit(labels, 1001)).toThrow(/hold back 1001 of 1000/);
});

test('subset, padDataset and resizeDataset keep names and labels', async () => {
  const part = padDataset(subset(counting(9), [5, 2]), [4, 4], -1);
  expect([part.length, part.shape, part.classes]).toEqual([2, [1, 4, 4], ['a', 'b', 'c']]);
  const { image, label } = await part.get(0);
  expect(label).toBe(2);
  expect(Array.from(image)).toEqual([-1, -1, -1, -1, 500, 501, 502, -1, 503, 504, 505, -1, -1, -1, -1, -1]);
  expect((await resizeDataset(counting(3), [1, 1]).get(2)).image[0]).toBeCloseTo(202.5, 4);
  await expect(part.get(2)).rejects.toThrow(/no item 2; it has 2 items/);
});

test('resize: area means, fractional overlap, and antialiased bilinear as PIL gives it', () => {
  expect(Array.from(resizeImage([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 4], [1, 2]))).toEqual([3.5, 5.5]);
  const thirds = resizeImage([0, 3, 6], [1, 1, 3], [1, 2]); // outputs cover 1.5 pixels each
  expect([thirds[0]!, thirds[1]!].map((v) => v.toFixed(5))).toEqual(['1.00000', '5.00000']);
  // A triangle of half width 2 around the centre 1: weights 3/4, 3/4, 1/4 before normalising.
  const half = resizeImage([0, 4, 8, 12], [1, 1, 4], [1, 2], 'bilinear');
  expect(half[0]).toBeCloseTo((0 * 0.75 + 4 * 0.75 + 8 * 0.25) / 1.75, 6);
  expect(half[0]! + half[1]!).toBeCloseTo(12, 6);
  expect(Array.from(resizeImage([1, 2], [1, 1, 2], [2, 4], 'bilinear'))).toEqual([1, 1.25, 1.75, 2, 1, 1.25, 1.75, 2]);
  expect(Array.from(resizeImage([1, 2, 3, 4], [2, 1, 2], [1, 4], 'area'))).toEqual([1, 1, 2, 2, 3, 3, 4, 4]);
  expect(Array.from(fitCanvas([1, 2, 3, 4, 5], [1, 1, 5], [1, 3], 0))).toEqual([2, 3, 4]);
});
