/**
 * LoRA (Hu et al. 2022): W + scale · alpha/rank · up·down for chosen layers of a model, read from files in the three namings that exist,
 * and applied live, as two small products beside the layer's own, or merged into the weights.
 */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { matmul } from '../engine/ops/matmul';
import { packInto } from '../engine/ops/packed';
import { add, mul, scale as scaleBy } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { copyInto } from '../engine/ops/state';
import { compile, tensorUsage, type BufferView } from '../engine/program';
import { numel, showShape, type Shape } from '../engine/shape';
import { loraNameParser, type LoraFactor } from '../io/lora_names';
import type { TensorStore } from '../io/safetensors';
import { Parameters, storedShape, WeightStore, type ParameterSpec, type WeightLayout } from './parameters';

/** The low-rank change of one layer. */
export interface LoraModule {
  readonly rank: number;
  /** The change is up·down · alpha/rank. */
  readonly alpha: number;
  /** Names of the factors in the file; absent for an adapter that is yet to be trained. */
  readonly inFile?: Readonly<Record<LoraFactor, string>>;
}

/** One adapter for one model. */
export interface Lora {
  /** File or name, for messages. */
  readonly name: string;
  /** By the path of the layer in the model. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Where its factors are read from. */
  readonly store?: TensorStore;
}

/** An adapter with the strength at which it is applied. */
export interface WeightedLora {
  readonly lora: Lora;
  readonly scale: number;
}

const factors: readonly LoraFactor[] = ['down', 'up'];

/**
 * The part of a LoRA file that is for one model. Names may be diffusers' (attention processors, `lora_linear_layer`), PEFT's (`lora_A`) or kohya's
 * (`lora_unet_…`, original block names of SDXL included).
 * @param component The model's folder in a pipeline: `unet`, `text_encoder`, `text_encoder_2`, `prior`, `transformer`.
 * @param specs The model's parameters.
 * @param options.layersPerBlock Of the U-Net's config: original block names count through all blocks.
 * @param options.allowNone A file that has nothing for this model gives an adapter without modules, in place of an error.
 * @throws BruitError `checkpoint` for tensors that name no layer of the model, half a pair, or a wrong shape: all of them in one error, so that no
 * adapter is applied by half. Parts for other components are left aside.
 */
export async function readLora(store: TensorStore, component: string, specs: Iterable<ParameterSpec>, options: { layersPerBlock?: number; allowNone?: boolean } = {}): Promise<Lora> {
  const { layersPerBlock = 2, allowNone = false } = options;
  const weights = new Map([...specs].filter((s) => (s.layout === 'linear' || s.layout === 'conv') && s.name.endsWith('.weight')).map((s) => [s.name.slice(0, -'.weight'.length), s]));
  const found = new Map<string, { down?: string; up?: string; alpha?: string }>();
  const wrong: string[] = [];
  const parse = loraNameParser(component, weights.keys(), layersPerBlock);
  for (const inFile of store.tensors.keys()) {
    const parsed = parse(inFile);
    if (parsed === 'other component') continue;
    if ('reason' in parsed) wrong.push(`${inFile}: ${parsed.reason}`);
    else {
      const entry = found.get(parsed.path) ?? {};
      if (entry[parsed.part]) wrong.push(`${inFile}: ${entry[parsed.part]} is for the same layer`);
      found.set(parsed.path, { ...entry, [parsed.part]: inFile });
    }
  }
  const modules = new Map<string, LoraModule>();
  for (const [path, { down, up, alpha }] of found) {
    if (!down || !up) {
      wrong.push(`${down ?? up ?? alpha}: ${path} has ${down ? 'no second' : up ? 'no first' : 'neither'} factor`);
      continue;
    }
    const rank = store.tensors.get(down)!.shape[0]!;
    const spec = weights.get(path)!;
    for (const factor of factors) {
      const name = factor === 'down' ? down : up;
      const { shape } = store.tensors.get(name)!;
      const wanted = factorShape(spec, rank, factor);
      if (numel(shape) !== numel(wanted) || shape[0] !== wanted[0] || shape[1] !== wanted[1]) wrong.push(`${name} is ${showShape(shape)}, but ${spec.name} ${showShape(spec.shape)} wants ${showShape(wanted)}`);
    }
    modules.set(path, { rank, alpha: alpha === undefined ? rank : (await store.readF32(alpha))[0]!, inFile: { down, up } });
  }
  if (wrong.length) {
    throw new BruitError('checkpoint', `${store.name}: ${wrong.length} of its tensors do not fit ${component}:${wrong.slice(0, 10).map((line) => `\n  ${line}`).join('')}${wrong.length > 10 ? `\n  … and ${wrong.length - 10} more` : ''}`);
  }
  if (modules.size === 0 && !allowNone) throw new BruitError('checkpoint', `${store.name}: none of its ${store.tensors.size} tensors is for ${component}`);
  return { name: store.name, modules, store };
}

/** Shape of a factor in checkpoint order. For a convolution the first has the kernel, the second is 1x1. */
function factorShape({ shape, layout }: Pick<ParameterSpec, 'shape' | 'layout'>, rank: number, factor: LoraFactor): Shape {
  if (layout === 'linear') return factor === 'down' ? [rank, shape[1]!] : [shape[0]!, rank];
  return factor === 'down' ? [rank, ...shape.slice(1)] : [shape[0]!, rank, 1, 1];
}

/** Name of a factor among an adapter's own parameters: PEFT's. */
const parameterName = (path: string, factor: LoraFactor): string => `${path}.lora_${factor === 'down' ? 'A' : 'B'}.weight`;

/** An adapter inside one graph: `ModelContext.loras` takes several. Its factors are parameters of their own, for a {@link WeightStore} of their own. */
export class LiveLora {
  readonly parameters: Parameters;
  private readonly used = new Set<string>();

  /** @param scale A number, or a tensor [1] f32 that may change from run to run. */
  constructor(
    graph: Graph,
    readonly lora: Lora,
    private readonly scale: number | Tensor = 1,
  ) {
    this.parameters = new Parameters(graph);
  }

  /** `y` plus the adapter's term for the layer at the graph's current path, if it has one. `term` applies both factors, in the layout kernels read. */
  add(graph: Graph, y: Tensor, layout: WeightLayout, shape: Shape, term: (down: Tensor, up: Tensor) => Tensor): Tensor {
    const path = graph.path;
    const module = this.lora.modules.get(path);
    if (!module) return y;
    this.used.add(path);
    const factor = (which: LoraFactor): Tensor =>
      // Starts as no change at all: the second factor is zero (diffusers' LoRALinearLayer).
      this.parameters.get(parameterName(path, which), factorShape({ shape, layout }, module.rank, which), layout, which === 'down' ? { kind: 'normal', std: 1 / module.rank } : { kind: 'constant', value: 0 });
    const change = scaleBy(term(factor('down'), factor('up')), module.alpha / module.rank);
    return add(y, typeof this.scale === 'number' ? scaleBy(change, this.scale) : mul(change, this.scale));
  }

  /** Fails if the model has layers missing that the adapter is for: call it when the model is built. */
  assertUsed(): void {
    const unused = [...this.lora.modules.keys()].filter((path) => !this.used.has(path));
    if (unused.length) throw new BruitError('checkpoint', `${this.lora.name}: the model has no layer ${unused.slice(0, 5).join(', ')}${unused.length > 5 ? ` and ${unused.length - 5} more` : ''} that this adapter changes`);
  }

  /** GPU memory with the adapter's factors. */
  async load(engine: Engine): Promise<WeightStore> {
    this.assertUsed();
    const weights = new WeightStore(engine, this.parameters.specs.values(), `lora ${this.lora.name}`);
    await writeFactors(weights, this.lora);
    return weights;
  }
}

async function writeFactors(weights: WeightStore, { name, modules, store }: Lora): Promise<void> {
  for (const [path, { inFile }] of modules) {
    if (!store || !inFile) throw new BruitError('checkpoint', `${name}: ${path} has no file to be read from`);
    for (const factor of factors) weights.write(parameterName(path, factor), await store.readF32(inFile[factor]));
  }
}

/**
 * Adapters merged into a model's weights. The weights without them stay in GPU memory, so that taking an adapter out restores every bit, and
 * changing one never adds rounding to rounding. Packed weights are unpacked for the sum and packed again, which rounds them as loading the sum would.
 */
export class MergedLoras {
  private readonly base = new Map<string, { readonly buffer: GPUBuffer; readonly bytes: number }>();

  constructor(
    readonly engine: Engine,
    readonly weights: WeightStore,
  ) {}

  /** Makes the weights those of the model with exactly these adapters; `[]` restores the model's own. */
  async set(loras: readonly WeightedLora[]): Promise<void> {
    this.restore();
    const touched = new Set(loras.flatMap(({ lora }) => [...lora.modules.keys()]));
    if (touched.size === 0) return;
    const specs = new Map(this.weights.specs.map((s) => [s.name, s]));
    const graph = new Graph();
    const bindings = new Map<Tensor, BufferView>();
    const parameters = loras.map(() => new Parameters(graph));
    for (const path of touched) {
      const spec = specs.get(`${path}.weight`);
      if (!spec) throw new BruitError('checkpoint', `${loras.find(({ lora }) => lora.modules.has(path))!.lora.name}: the model has no layer ${path}`);
      this.keep(spec);
      const stored = storedShape(spec.shape, spec.layout);
      const base = graph.parameter(`${path} without adapters`, stored);
      const view = this.weights.view(spec.name);
      bindings.set(base, { ...view, buffer: this.base.get(spec.name)!.buffer, offset: 0 });
      const merged = graph.parameter(spec.name, stored);
      bindings.set(merged, view);
      let sum: Tensor = base;
      loras.forEach(({ lora, scale }, i) => {
        const module = lora.modules.get(path);
        if (!module) return;
        const [down, up] = factors.map((f) => parameters[i]!.get(parameterName(path, f), factorShape(spec, module.rank, f), spec.layout, { kind: 'constant', value: 0 })) as [Tensor, Tensor];
        const product = matmul(reshape(down, [-1, module.rank]), reshape(up, [module.rank, -1]));
        sum = add(sum, scaleBy(reshape(product, stored), (scale * module.alpha) / module.rank));
      });
      (view.packed ? packInto : copyInto)(merged, sum);
    }
    const stores = parameters.map((p, i) => new WeightStore(this.engine, p.specs.values(), `lora ${loras[i]!.lora.name}`));
    try {
      for (const [i, store] of stores.entries()) {
        await writeFactors(store, loras[i]!.lora);
        for (const [t, view] of store.bindings(parameters[i]!)) bindings.set(t, view);
      }
      const program = await compile(this.engine, graph, { outputs: [], bindings, label: 'merge lora' });
      program.run();
      await program.done();
      program.destroy();
    } finally {
      for (const store of stores) store.destroy();
    }
  }

  /** Copies a weight aside before it is changed for the first time. */
  private keep({ name, shape }: ParameterSpec): void {
    if (this.base.has(name)) return;
    const { packed, parts } = this.weights.view(name);
    if (parts) throw new BruitError('limit', `${this.weights.label}: ${name} lies in ${parts.length} parts, as it is longer than this device binds at once, and adapters cannot be merged into it: load the weights in a smaller format`);
    const bytes = Math.ceil((packed?.bytes ?? numel(shape) * 4) / 16) * 16;
    const buffer = this.engine.createBuffer(`${name} without adapters`, bytes, tensorUsage);
    this.base.set(name, { buffer, bytes });
    this.copy([{ from: this.weights.view(name), to: { buffer, offset: 0 }, bytes }]);
  }

  private restore(): void {
    this.copy([...this.base].map(([name, { buffer, bytes }]) => ({ from: { buffer, offset: 0 }, to: this.weights.view(name), bytes })));
  }

  private copy(copies: readonly { from: BufferView; to: BufferView; bytes: number }[]): void {
    const encoder = this.engine.device.createCommandEncoder();
    for (const { from, to, bytes } of copies) encoder.copyBufferToBuffer(from.buffer, from.offset, to.buffer, to.offset, bytes);
    this.engine.device.queue.submit([encoder.finish()]);
  }

  /** Restores the weights and frees the copies. */
  destroy(): void {
    this.restore();
    for (const { buffer } of this.base.values()) this.engine.destroyBuffer(buffer);
    this.base.clear();
  }
}
