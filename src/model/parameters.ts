/**
 * Weights: declared by the model code under their checkpoint names, stored in a few large GPU buffers, loaded and saved in diffusers' layout.
 *
 * Kernels want convolution weights as [R,S,C,K] and linear weights as [in,out]; checkpoints hold [K,C,R,S] and [out,in]. The conversion
 * happens once, on the host, at load and save. The weights of products and tables of embeddings may be packed (src/io/packed.ts); norms, biases and
 * whatever else is small are f32.
 */
import type { Packed } from '../engine/buffer_view';
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import type { Graph, Tensor } from '../engine/graph';
import { tensorUsage, type BufferView } from '../engine/program';
import { normals, RngStream, uniforms } from '../engine/rng';
import { numel, type Shape } from '../engine/shape';
import { matchCheckpoint, type MatchOptions } from '../io/checkpoint';
import { pack, packedBytes, unpack } from '../io/packed';
import type { TensorStore } from '../io/safetensors';
import { storageReport, weightError, type StorageReport, type WeightError } from './weight_error';
import { weightFormat, type WeightFormat, type WeightStorage } from './weight_format';
import { joinParts, partOf, partShapes, placingOrder } from './weight_parts';

/** `conv` [K,C,R,S] is stored as [R,S,C,K], `linear` [out,in] as [in,out], `table` [rows,width] (embeddings, looked up by row) and `plain` as they are. */
export type WeightLayout = 'conv' | 'linear' | 'table' | 'plain';

/** PyTorch's default initialisation: `fan_in` is U(±1/√fanIn). */
export type Init = { readonly kind: 'fan_in'; readonly fanIn: number } | { readonly kind: 'constant'; readonly value: number } | { readonly kind: 'normal'; readonly std: number };

export interface ParameterSpec {
  /** Name in the checkpoint. */
  readonly name: string;
  /** Shape in the checkpoint. */
  readonly shape: Shape;
  readonly layout: WeightLayout;
  readonly init: Init;
  /** False for what diffusers stores with the weights but does not train (Fourier frequencies). */
  readonly trainable: boolean;
}

/** The parameters of one graph, made on first use. */
export class Parameters {
  readonly specs = new Map<string, ParameterSpec>();
  readonly tensors = new Map<string, Tensor>();

  constructor(readonly graph: Graph) {}

  /** The parameter `name`, in the layout kernels read. */
  get(name: string, shape: Shape, layout: WeightLayout, init: Init, trainable = true): Tensor {
    const known = this.tensors.get(name);
    if (known) return known;
    this.specs.set(name, { name, shape, layout, init, trainable });
    const t = this.graph.parameter(name, storedShape(shape, layout));
    this.tensors.set(name, t);
    return t;
  }
}

/** Shape in GPU memory of a weight of checkpoint shape `shape`. */
export function storedShape(shape: Shape, layout: WeightLayout): Shape {
  if (layout === 'conv') return [shape[2]!, shape[3]!, shape[1]!, shape[0]!];
  if (layout === 'linear') return [shape[1]!, shape[0]!];
  return shape;
}

/** Checkpoint order to GPU order. */
export function toStored(data: Float32Array, shape: Shape, layout: WeightLayout): Float32Array {
  if (layout === 'plain' || layout === 'table') return data;
  const [k, c] = [shape[0]!, shape[1]!];
  const taps = numel(shape.slice(2));
  const out = new Float32Array(data.length);
  for (let o = 0; o < k; o++) for (let i = 0; i < c; i++) for (let t = 0; t < taps; t++) out[(t * c + i) * k + o] = data[(o * c + i) * taps + t]!;
  return out;
}

/** GPU order to checkpoint order. */
export function fromStored(data: Float32Array, shape: Shape, layout: WeightLayout): Float32Array {
  if (layout === 'plain' || layout === 'table') return data;
  const [k, c] = [shape[0]!, shape[1]!];
  const taps = numel(shape.slice(2));
  const out = new Float32Array(data.length);
  for (let o = 0; o < k; o++) for (let i = 0; i < c; i++) for (let t = 0; t < taps; t++) out[(o * c + i) * taps + t] = data[(t * c + i) * k + o]!;
  return out;
}

/** A tensor on its way to a file. */
export interface NamedTensor {
  readonly name: string;
  readonly shape: Shape;
  readonly data: Float32Array;
}

/** A weight's memory, or that of one part of it. */
interface Piece {
  /** As stored. */
  readonly shape: Shape;
  readonly bytes: number;
  readonly slab: number;
  readonly offset: number;
}

interface Place {
  readonly spec: ParameterSpec;
  readonly format: WeightFormat;
  /** One, or the parts of a weight that no binding holds whole: ranges of output channels, of a table's rows. */
  readonly pieces: readonly Piece[];
  /** Of its pieces, where they were rounded. */
  errors: WeightError[];
}

export interface LoadOptions extends MatchOptions {
  /** For messages. */
  readonly label?: string;
  /** `auto` by default. */
  readonly storage?: WeightStorage;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * GPU memory for a set of parameters, or for anything that has one value per weight (gradients, moments, EMA).
 * f32 stores made from the same specs have equal layouts, so optimizers walk them slab by slab.
 */
export class WeightStore {
  /** Slabs of at most the device's binding limit; each tensor, or part of one, lies in one, at a multiple of 256 bytes. */
  readonly slabs: readonly { readonly buffer: GPUBuffer; readonly bytes: number }[];
  private readonly places = new Map<string, Place>();

  /**
   * @param format Of the weights that may be packed: see {@link weightFormat}. Weights that are trained must be f32.
   * @throws BruitError `limit` for a weight that exceeds the device's binding limit and cannot be split.
   */
  constructor(
    readonly engine: Engine,
    specs: Iterable<ParameterSpec>,
    readonly label = 'weights',
    format: (spec: ParameterSpec) => WeightFormat = () => 'f32',
  ) {
    const { maxStorageBufferBindingSize, maxBufferSize, minStorageBufferOffsetAlignment } = engine.profile.limits;
    const limit = Math.floor(Math.min(maxStorageBufferBindingSize, maxBufferSize) / minStorageBufferOffsetAlignment) * minStorageBufferOffsetAlignment;
    const sizes: number[] = [];
    const place = (shape: Shape, bytes: number): Piece => {
      const taken = Math.ceil(bytes / minStorageBufferOffsetAlignment) * minStorageBufferOffsetAlignment;
      if (sizes.length === 0 || sizes[sizes.length - 1]! + taken > limit) sizes.push(0);
      const slab = sizes.length - 1;
      const offset = sizes[slab]!;
      sizes[slab]! += taken;
      return { shape, bytes, slab, offset };
    };
    for (const spec of placingOrder(specs, this.places)) {
      const own = format(spec);
      const table = spec.layout === 'table';
      const whole = storedShape(spec.shape, spec.layout);
      const bytesOf = (shape: Shape) => (own === 'f32' ? 4 * numel(shape) : packedBytes(own, numel(shape), columnsOf(table, shape)));
      const shapes = bytesOf(whole) <= limit ? [whole] : spec.layout === 'plain' ? [] : partShapes(whole, table, bytesOf, limit);
      if (shapes.length === 0) throw new BruitError('limit', `${label}: '${spec.name}' takes ${bytesOf(whole)} bytes as ${own}; this device binds at most ${limit} at once, and it cannot be split so finely`);
      this.places.set(spec.name, { spec, format: own, errors: [], pieces: shapes.map((shape) => place(shape, bytesOf(shape))) });
    }
    this.slabs = sizes.map((bytes, i) => ({ buffer: engine.createBuffer(`${label}.${i}`, bytes, tensorUsage), bytes }));
  }

  /** A store with the weights of a checkpoint, stored as `storage` says. The names are compared before GPU memory is taken. */
  static async fromCheckpoint(engine: Engine, specs: Iterable<ParameterSpec>, store: TensorStore, { label, storage = 'auto', onProgress, ...match }: LoadOptions = {}): Promise<WeightStore> {
    const all = [...specs];
    const names = matchCheckpoint(store, shapesOf(all), match);
    let weights: WeightStore | undefined;
    try {
      await engine.withinMemory(() => (weights = new WeightStore(engine, all, label, (spec) => weightFormat(spec, storage, store.tensors.get(names.get(spec.name)!)!.dtype))), () => `${label ?? 'weights'}: ${weights!.bytes} bytes of weights`);
      await weights!.fill(store, names, onProgress);
      return weights!;
    } catch (e) {
      weights?.destroy();
      throw e;
    }
  }

  get bytes(): number {
    return this.slabs.reduce((n, s) => n + s.bytes, 0);
  }

  /** Number of weights, padding excluded. */
  get count(): number {
    return [...this.places.values()].reduce((n, p) => n + numel(p.spec.shape), 0);
  }

  get specs(): ParameterSpec[] {
    return [...this.places.values()].map((p) => p.spec);
  }

  view(name: string): BufferView {
    const { spec, format, pieces } = this.place(name);
    const parts = pieces.map(({ shape, bytes, slab, offset }) => {
      const packed: Packed | undefined = format === 'f32' ? undefined : { format, bytes, table: spec.layout === 'table' };
      return { shape, view: { buffer: this.slabs[slab]!.buffer, offset, ...(packed && { packed }) } };
    });
    return parts.length === 1 ? parts[0]!.view : { ...parts[0]!.view, parts };
  }

  private place(name: string): Place {
    const place = this.places.get(name);
    if (!place) throw new BruitError('checkpoint', `${this.label}: no weight is called '${name}'`);
    return place;
  }

  /** Bindings of a graph's parameters to this store, for `compile`. */
  bindings(parameters: Parameters): Map<Tensor, BufferView> {
    return new Map([...parameters.tensors].map(([name, t]) => [t, this.view(name)]));
  }

  /** Uploads one tensor given in checkpoint layout. */
  write(name: string, data: Float32Array): void {
    this.upload(name, data, false);
  }

  private upload(name: string, data: Float32Array, measured: boolean): void {
    const place = this.places.get(name);
    if (!place || data.length !== numel(place.spec.shape)) throw new BruitError('checkpoint', `${this.label}: '${name}' takes ${place ? numel(place.spec.shape) : 'no'} numbers, got ${data.length}`);
    const { spec, format, pieces } = place;
    if (format === 'f16') {
      const beyond = data.find((x) => Math.abs(x) >= 65520);
      if (beyond !== undefined) throw new BruitError('checkpoint', `${this.label}: '${name}' holds ${beyond}, and f16 ends at 65504: store the weights as bf16 or f32`);
    }
    const stored = toStored(data, spec.shape, spec.layout);
    const table = spec.layout === 'table';
    let first = 0;
    place.errors = pieces.flatMap(({ shape, slab, offset }) => {
      const part = pieces.length === 1 ? stored : partOf(stored, table, first, shape);
      first += table ? shape[0]! : shape.at(-1)!;
      const columns = columnsOf(table, shape);
      const words = format === 'f32' ? part : pack(format, part, columns);
      this.engine.device.queue.writeBuffer(this.slabs[slab]!.buffer, offset, words as Float32Array<ArrayBuffer>);
      return measured && format !== 'f32' ? [weightError(part, unpack(format, words as Uint32Array, part.length, columns))] : [];
    });
  }

  /** One tensor, in checkpoint layout: the numbers that kernels compute with. */
  async read(name: string): Promise<Float32Array> {
    const place = this.place(name);
    const raw = await Promise.all(place.pieces.map(({ slab, offset, bytes }) => this.engine.readBuffer({ buffer: this.slabs[slab]!.buffer, offset }, bytes)));
    return decode(place, raw.map((buffer) => ({ buffer, offset: 0 })));
  }

  /** All tensors in checkpoint layout; one read-back per slab. */
  async readAll(): Promise<NamedTensor[]> {
    const slabs = await Promise.all(this.slabs.map((s) => this.engine.readBuffer({ buffer: s.buffer, offset: 0 }, s.bytes)));
    return [...this.places].map(([name, place]) => ({ name, shape: place.spec.shape, data: decode(place, place.pieces.map(({ slab, offset }) => ({ buffer: slabs[slab]!, offset }))) }));
  }

  /** Loads every tensor from a checkpoint; missing, unexpected and mis-shaped ones are listed together in one error. */
  async load(store: TensorStore, onProgress?: (done: number, total: number) => void, options?: MatchOptions): Promise<void> {
    await this.fill(store, matchCheckpoint(store, shapesOf(this.specs), options), onProgress);
  }

  private async fill(store: TensorStore, names: ReadonlyMap<string, string>, onProgress?: (done: number, total: number) => void): Promise<void> {
    let done = 0;
    for (const [name, fileName] of names) {
      const exact = store.tensors.get(fileName)!.dtype === this.places.get(name)!.format.toUpperCase();
      this.upload(name, await store.readF32(fileName), !exact);
      onProgress?.(++done, names.size);
    }
  }

  /** Memory by kind of weight and format, with the error of those that {@link fromCheckpoint} or {@link load} rounded. */
  storageReport(): StorageReport[] {
    return storageReport([...this.places.values()].map(({ spec, format, pieces, errors }) => ({ layout: spec.layout, format, weights: numel(spec.shape), bytes: pieces.reduce((n, { bytes }) => n + bytes, 0), errors })));
  }

  /** PyTorch's default initialisation, from Philox keyed by (seed, index of the tensor). */
  initialise(seed: number): void {
    this.specs.forEach((spec, index) => {
      const n = numel(spec.shape);
      const { init } = spec;
      let data = new Float32Array(n);
      if (init.kind === 'constant') data.fill(init.value);
      else if (init.kind === 'normal') data = Float32Array.from(normals(seed, { index, step: 0, stream: RngStream.init }, n), (z) => z * init.std);
      else data = Float32Array.from(uniforms(seed, { index, step: 0, stream: RngStream.init }, n), (u) => (2 * u - 1) / Math.sqrt(init.fanIn));
      this.write(spec.name, data);
    });
  }

  /** Copies another store of the same layout on the GPU. */
  copyFrom(other: WeightStore): void {
    const encoder = this.engine.device.createCommandEncoder();
    this.slabs.forEach((s, i) => encoder.copyBufferToBuffer(other.slabs[i]!.buffer, 0, s.buffer, 0, s.bytes));
    this.engine.device.queue.submit([encoder.finish()]);
  }

  destroy(): void {
    for (const s of this.slabs) this.engine.destroyBuffer(s.buffer);
  }
}

const shapesOf = (specs: readonly ParameterSpec[]): Map<string, number[]> => new Map(specs.map((s) => [s.name, [...s.shape]]));

/** Columns of the matrix that a weight of this stored shape is packed as. */
const columnsOf = (table: boolean, shape: Shape): number => (table ? 1 : (shape.at(-1) ?? 1));

/** A weight in checkpoint layout from the memory of its pieces. */
function decode({ spec, format, pieces }: Place, raw: readonly { readonly buffer: ArrayBuffer; readonly offset: number }[]): Float32Array {
  const table = spec.layout === 'table';
  const parts = pieces.map(({ shape, bytes }, i) => {
    const { buffer, offset } = raw[i]!;
    return format === 'f32' ? new Float32Array(buffer, offset, bytes / 4) : unpack(format, new Uint32Array(buffer, offset, bytes / 4), numel(shape), columnsOf(table, shape));
  });
  const stored = parts.length === 1 ? parts[0]! : joinParts(parts, table, pieces.map(({ shape }) => shape), storedShape(spec.shape, spec.layout));
  return fromStored(stored, spec.shape, spec.layout);
}
