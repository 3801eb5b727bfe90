/**
 * Weights: declared by the model code under their checkpoint names, stored in a few large GPU buffers, loaded and saved in diffusers' layout.
 *
 * Kernels want convolution weights as [R,S,C,K] and linear weights as [in,out]; checkpoints hold [K,C,R,S] and [out,in]. The conversion
 * happens once, on the host, at load and save.
 */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import type { Graph, Tensor } from '../engine/graph';
import { tensorUsage, type BufferView } from '../engine/program';
import { normals, RngStream, uniforms } from '../engine/rng';
import { dtypeBytes, numel, type Shape } from '../engine/shape';
import { matchCheckpoint, type MatchOptions } from '../io/checkpoint';
import { f32ToF16, f16ToF32 } from '../io/half';
import type { TensorStore } from '../io/safetensors';

/** `conv` [K,C,R,S] is stored as [R,S,C,K], `linear` [out,in] as [in,out], `plain` as it is. */
export type WeightLayout = 'conv' | 'linear' | 'plain';

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
  if (layout === 'plain') return data;
  const [k, c] = [shape[0]!, shape[1]!];
  const taps = numel(shape.slice(2));
  const out = new Float32Array(data.length);
  for (let o = 0; o < k; o++) for (let i = 0; i < c; i++) for (let t = 0; t < taps; t++) out[(t * c + i) * k + o] = data[(o * c + i) * taps + t]!;
  return out;
}

/** GPU order to checkpoint order. */
export function fromStored(data: Float32Array, shape: Shape, layout: WeightLayout): Float32Array {
  if (layout === 'plain') return data;
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

const match = (store: TensorStore, specs: readonly ParameterSpec[], options?: MatchOptions): Map<string, string> => matchCheckpoint(store, new Map(specs.map((s) => [s.name, s.shape])), options);

/**
 * GPU memory for a set of parameters, or for anything that has one value per weight (gradients, moments, EMA).
 * Stores made from the same specs have equal layouts, so optimizers walk them slab by slab.
 */
export class WeightStore {
  /** Slabs of at most the device's binding limit; each tensor lies in one, at a multiple of 256 bytes. */
  readonly slabs: readonly { readonly buffer: GPUBuffer; readonly bytes: number }[];
  private readonly places = new Map<string, { spec: ParameterSpec; slab: number; offset: number }>();

  constructor(
    readonly engine: Engine,
    specs: Iterable<ParameterSpec>,
    readonly label = 'weights',
    readonly dtype: 'f32' | 'f16' = 'f32',
  ) {
    const { maxStorageBufferBindingSize, maxBufferSize, minStorageBufferOffsetAlignment } = engine.profile.limits;
    const limit = Math.min(maxStorageBufferBindingSize, maxBufferSize);
    const sizes: number[] = [];
    for (const spec of specs) {
      const bytes = Math.ceil((numel(spec.shape) * dtypeBytes[dtype]) / minStorageBufferOffsetAlignment) * minStorageBufferOffsetAlignment;
      if (bytes > limit) throw new BruitError('limit', `${label}: '${spec.name}' takes ${bytes} bytes; this device binds at most ${limit}. ${dtype === 'f32' ? 'Store the weights as f16.' : ''}`);
      if (sizes.length === 0 || sizes[sizes.length - 1]! + bytes > limit) sizes.push(0);
      const slab = sizes.length - 1;
      this.places.set(spec.name, { spec, slab, offset: sizes[slab]! });
      sizes[slab]! += bytes;
    }
    this.slabs = sizes.map((bytes, i) => ({ buffer: engine.createBuffer(`${label}.${i}`, bytes, tensorUsage), bytes }));
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
    const place = this.places.get(name);
    if (!place) throw new BruitError('checkpoint', `${this.label}: no weight is called '${name}'`);
    return { buffer: this.slabs[place.slab]!.buffer, offset: place.offset };
  }

  /** Bindings of a graph's parameters to this store, for `compile`. */
  bindings(parameters: Parameters): Map<Tensor, BufferView> {
    return new Map([...parameters.tensors].map(([name, t]) => [t, this.view(name)]));
  }

  /** Uploads one tensor given in checkpoint layout. */
  write(name: string, data: Float32Array): void {
    const { spec } = this.places.get(name) ?? {};
    if (!spec || data.length !== numel(spec.shape)) throw new BruitError('checkpoint', `${this.label}: '${name}' takes ${spec ? numel(spec.shape) : 'no'} numbers, got ${data.length}`);
    const stored = toStored(data, spec.shape, spec.layout);
    const view = this.view(name);
    let bytes: Float32Array | Uint16Array = this.dtype === 'f32' ? stored : f32ToF16(stored);
    if (bytes.byteLength % 4) {
      const even = new Uint16Array(bytes.length + 1);
      even.set(bytes as Uint16Array);
      bytes = even;
    }
    this.engine.device.queue.writeBuffer(view.buffer, view.offset, bytes as Float32Array<ArrayBuffer>);
  }

  /** One tensor, in checkpoint layout. */
  async read(name: string): Promise<Float32Array> {
    const { spec } = this.places.get(name)!;
    const raw = await this.engine.readBuffer(this.view(name), numel(spec.shape) * dtypeBytes[this.dtype]);
    return fromStored(this.dtype === 'f32' ? new Float32Array(raw) : f16ToF32(new Uint16Array(raw)), spec.shape, spec.layout);
  }

  /** All tensors in checkpoint layout; one read-back per slab. */
  async readAll(): Promise<NamedTensor[]> {
    const slabs = await Promise.all(this.slabs.map((s) => this.engine.readBuffer({ buffer: s.buffer, offset: 0 }, s.bytes)));
    return [...this.places].map(([name, { spec, slab, offset }]) => {
      const n = numel(spec.shape);
      const data = this.dtype === 'f32' ? new Float32Array(slabs[slab]!, offset, n) : f16ToF32(new Uint16Array(slabs[slab]!, offset, n));
      return { name, shape: spec.shape, data: fromStored(data, spec.shape, spec.layout) };
    });
  }

  /** Loads every tensor from a checkpoint; missing, unexpected and mis-shaped ones are listed together in one error. */
  async load(store: TensorStore, onProgress?: (done: number, total: number) => void, options?: MatchOptions): Promise<void> {
    const names = match(store, this.specs, options);
    let done = 0;
    for (const [name, fileName] of names) {
      this.write(name, await store.readF32(fileName));
      onProgress?.(++done, names.size);
    }
  }

  /**
   * A store filled from a checkpoint, which is compared with the specs before any memory is taken.
   * @throws BruitError `checkpoint` as {@link load}; `limit` if the GPU's memory does not hold the weights.
   */
  static async fromCheckpoint(engine: Engine, specs: readonly ParameterSpec[], label: string, store: TensorStore, onProgress?: (done: number, total: number) => void, options?: MatchOptions): Promise<WeightStore> {
    match(store, specs, options);
    let weights: WeightStore | undefined;
    try {
      await engine.withinMemory(() => (weights = new WeightStore(engine, specs, label)), () => `${label}: ${weights!.bytes} bytes of weights`);
      await weights!.load(store, onProgress, options);
      return weights!;
    } catch (e) {
      weights?.destroy();
      throw e;
    }
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
