import { BruitError, check } from '../engine/errors';
import { permutation, philox4x32, RngStream, seedKey, uniform01 } from '../engine/rng';
import { fitCanvas, resizeImage, type ResizeFilter } from './transform';

/** One image and its class. */
export interface DatasetItem {
  /** [C,H,W] f32 in [-1,1]. */
  readonly image: Float32Array;
  /** Index into the data set's `classes`; 0 where there are none. */
  readonly label: number;
}

/** Images of one shape, addressed by number. `get` may be called for several items at once and must not change what it returned before. */
export interface ImageDataset {
  readonly name: string;
  readonly length: number;
  /** [C,H,W] of every image. */
  readonly shape: readonly [number, number, number];
  readonly classes: readonly string[] | undefined;
  /** A text for each image, where there are some. */
  readonly captions?: readonly string[] | undefined;
  get(index: number): Promise<DatasetItem>;
}

/** `dataset` with its images centred on a `size` [H,W] canvas of `fill` (-1 is black): 28x28 digits to 32x32, say. Larger images are cropped. */
export function padDataset(dataset: ImageDataset, size: readonly [number, number], fill = -1): ImageDataset {
  return mapImages(dataset, size, (image) => fitCanvas(image, dataset.shape, size, fill));
}

/** `dataset` with its images resized to `size` [H,W]. */
export function resizeDataset(dataset: ImageDataset, size: readonly [number, number], filter: ResizeFilter = 'area'): ImageDataset {
  return mapImages(dataset, size, (image) => resizeImage(image, dataset.shape, size, filter));
}

function mapImages(dataset: ImageDataset, [height, width]: readonly [number, number], change: (image: Float32Array) => Float32Array): ImageDataset {
  return {
    name: dataset.name,
    length: dataset.length,
    shape: [dataset.shape[0], height, width],
    classes: dataset.classes,
    captions: dataset.captions,
    async get(index) {
      const { image, label } = await dataset.get(index);
      return { image: change(image), label };
    },
  };
}

/** The items `indices` of `dataset`, in that order. */
export function subset(dataset: ImageDataset, indices: ArrayLike<number>, name = dataset.name): ImageDataset {
  const { shape, classes, captions } = dataset;
  return { name, length: indices.length, shape, classes, captions: captions && Array.from(indices, (i) => captions[i]!), get: async (i) => dataset.get(indices[checkIndex(i, indices.length, name)]!) };
}

/** Throws unless `index` is one of `length` items. */
export function checkIndex(index: number, length: number, name: string): number {
  check(Number.isInteger(index) && index >= 0 && index < length, 'input', () => `${name}: no item ${index}; it has ${length} items, numbered from 0.`);
  return index;
}

/**
 * Splits 0..labels.length-1 into a training and a held-back part of `heldBack` items with the classes in proportion
 * (largest remainders). The same labels, count and seed always give the same split; both parts are in ascending order.
 */
export function stratifiedSplit(labels: ArrayLike<number>, heldBack: number, seed = 0): { train: Uint32Array; heldBack: Uint32Array } {
  check(Number.isInteger(heldBack) && heldBack >= 0 && heldBack <= labels.length, 'input', () => `cannot hold back ${heldBack} of ${labels.length} items.`);
  const byClass = new Map<number, number[]>();
  for (let i = 0; i < labels.length; i++) {
    const members = byClass.get(labels[i]!);
    if (members) members.push(i);
    else byClass.set(labels[i]!, [i]);
  }
  const shares = [...byClass].sort(([a], [b]) => a - b).map(([label, members]) => {
    const exact = labels.length ? (members.length * heldBack) / labels.length : 0;
    return { label, members, count: Math.floor(exact), remainder: exact - Math.floor(exact) };
  });
  const missing = heldBack - shares.reduce((sum, s) => sum + s.count, 0);
  for (const share of [...shares].sort((a, b) => b.remainder - a.remainder || a.label - b.label).slice(0, missing)) share.count++;
  const held = new Uint8Array(labels.length);
  for (const { label, members, count } of shares) {
    for (const i of permutation(members.length, seed, { index: label, stream: RngStream.split }).subarray(0, count)) held[members[i]!] = 1;
  }
  const all = Uint32Array.from({ length: labels.length }, (_, i) => i);
  return { train: all.filter((i) => !held[i]), heldBack: all.filter((i) => held[i]) };
}

/** What {@link BatchLoader.next} yields; `indices` are the data set's item numbers. */
export interface Batch {
  /** [N,C,H,W] f32 in [-1,1]. */
  readonly images: Float32Array;
  /** [N] class numbers. */
  readonly labels: Int32Array;
  /** [N] item numbers. */
  readonly indices: Uint32Array;
  readonly epoch: number;
}

export interface BatchLoaderOptions {
  readonly batchSize: number;
  /** Default 0. */
  readonly seed?: number;
  /** A new order each epoch; default true. */
  readonly shuffle?: boolean;
  /** Probability that an image is mirrored left to right, drawn per (seed, epoch, item); default 0. */
  readonly flip?: number;
  /** Drop the last, smaller batch of an epoch (default true: a recorded GPU plan has one batch size). */
  readonly dropLast?: boolean;
  /** Batches prepared ahead of the one asked for; default 2. */
  readonly prefetch?: number;
}

/** A loader's place and everything that decides what comes next; plain JSON for checkpoints. */
export interface BatchLoaderState {
  readonly dataset: string;
  readonly length: number;
  readonly batchSize: number;
  readonly seed: number;
  readonly shuffle: boolean;
  readonly flip: number;
  readonly dropLast: boolean;
  /** Place of the next batch. */
  readonly epoch: number;
  readonly batch: number;
}

/**
 * Endless batches, epoch after epoch. Batch b of epoch e is a pure function of the data set, the options, e and b, so
 * prefetching cannot change it and a loader restored from {@link BatchLoader.state} goes on with the very same batches.
 */
export class BatchLoader {
  /** Batches in one epoch. */
  readonly batchesPerEpoch: number;
  readonly #dataset: ImageDataset;
  readonly #options: Required<BatchLoaderOptions>;
  readonly #key: [number, number];
  #position = 0; // of the next batch, counted over all epochs
  #ahead = new Map<number, Promise<Batch>>();
  #order: { epoch: number; indices: Uint32Array }[] = [];

  constructor(dataset: ImageDataset, options: BatchLoaderOptions) {
    this.#dataset = dataset;
    this.#options = { seed: 0, shuffle: true, flip: 0, dropLast: true, prefetch: 2, ...options };
    const { batchSize, dropLast, flip, prefetch, seed } = this.#options;
    this.#key = seedKey(seed);
    check(Number.isInteger(batchSize) && batchSize > 0, 'input', () => `batch size ${batchSize}: must be a whole number above 0.`);
    check(flip >= 0 && flip <= 1, 'input', () => `flip ${flip}: is a probability, from 0 to 1.`);
    check(Number.isInteger(prefetch) && prefetch >= 0, 'input', () => `prefetch ${prefetch}: is a number of batches, 0 or more.`);
    check(dataset.length > 0, 'input', () => `${dataset.name}: has no images.`);
    check(!dropLast || dataset.length >= batchSize, 'input', () => `${dataset.name}: ${dataset.length} images do not fill one batch of ${batchSize}; lower the batch size or keep the last batch (dropLast: false).`);
    this.batchesPerEpoch = dropLast ? Math.floor(dataset.length / batchSize) : Math.ceil(dataset.length / batchSize);
  }

  /** The next batch; starts loading those after it. A batch that fails to load rejects here with the data set's error. */
  next(): Promise<Batch> {
    const position = this.#position++;
    const batch = this.#ahead.get(position) ?? this.#load(position);
    this.#ahead.delete(position);
    for (let p = position + 1; p <= position + this.#options.prefetch; p++) {
      if (this.#ahead.has(p)) continue;
      const prepared = this.#load(p);
      prepared.catch(() => {}); // reported when that batch is asked for; until then no unhandled rejection
      this.#ahead.set(p, prepared);
    }
    return batch;
  }

  /** The rest of the current epoch (all of it when at its start): `for await (const batch of loader.epoch())`. */
  async *epoch(): AsyncGenerator<Batch> {
    const end = (Math.floor(this.#position / this.batchesPerEpoch) + 1) * this.batchesPerEpoch;
    while (this.#position < end) yield await this.next();
  }

  /** The place after the last batch that {@link next} handed out; prefetched batches do not count. */
  state(): BatchLoaderState {
    const { batchSize, seed, shuffle, flip, dropLast } = this.#options;
    const epoch = Math.floor(this.#position / this.batchesPerEpoch);
    return { dataset: this.#dataset.name, length: this.#dataset.length, batchSize, seed, shuffle, flip, dropLast, epoch, batch: this.#position % this.batchesPerEpoch };
  }

  /** Goes to a recorded place. Throws if the state comes from other data or options, whose batches would differ. */
  restore(state: BatchLoaderState): void {
    const mine = this.state();
    const differing = (Object.keys(mine) as (keyof BatchLoaderState)[]).filter((k) => k !== 'epoch' && k !== 'batch' && mine[k] !== state[k]);
    if (differing.length > 0) {
      throw new BruitError('checkpoint', `the checkpoint's batches cannot be continued: ${differing.map((k) => `${k} was ${state[k]}, now ${mine[k]}`).join('; ')}. Resume with the same data and options.`);
    }
    const { epoch, batch } = state;
    check(Number.isInteger(epoch) && epoch >= 0 && Number.isInteger(batch) && batch >= 0 && batch < this.batchesPerEpoch, 'checkpoint', () => `the checkpoint's place in the data, epoch ${epoch} batch ${batch}, does not exist: an epoch has ${this.batchesPerEpoch} batches.`);
    this.#position = epoch * this.batchesPerEpoch + batch;
    this.#ahead.clear();
  }

  async #load(position: number): Promise<Batch> {
    const { batchSize } = this.#options;
    const epoch = Math.floor(position / this.batchesPerEpoch);
    const start = (position % this.batchesPerEpoch) * batchSize;
    const indices = this.#epochOrder(epoch).slice(start, start + batchSize);
    const [channels, height, width] = this.#dataset.shape;
    const size = channels * height * width;
    const images = new Float32Array(indices.length * size);
    const labels = new Int32Array(indices.length);
    const items = await Promise.all(Array.from(indices, (index) => this.#dataset.get(index)));
    items.forEach(({ image, label }, n) => {
      check(image.length === size, 'shape', () => `${this.#dataset.name}: item ${indices[n]} has ${image.length} values, not [${this.#dataset.shape}].`);
      images.set(image, n * size);
      labels[n] = label;
      if (this.#flips(epoch, indices[n]!)) {
        for (let row = n * size; row < (n + 1) * size; row += width) images.subarray(row, row + width).reverse();
      }
    });
    return { images, labels, indices, epoch };
  }

  #flips(epoch: number, index: number): boolean {
    const { flip } = this.#options;
    return flip > 0 && uniform01(philox4x32([0, index, epoch, RngStream.flip], this.#key)[0]) < flip;
  }

  #epochOrder(epoch: number): Uint32Array {
    const known = this.#order.find((o) => o.epoch === epoch);
    if (known) return known.indices;
    const { length } = this.#dataset;
    const indices = this.#options.shuffle ? permutation(length, this.#options.seed, { step: epoch, stream: RngStream.shuffle }) : Uint32Array.from({ length }, (_, i) => i);
    this.#order = [...this.#order.slice(-1), { epoch, indices }]; // prefetching looks one epoch ahead
    return indices;
  }
}
