/** A UNet2DModel's forward pass against `io.safetensors`: recorded activations `act.PATH` and the output, for each file of weights. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { compile } from '../engine/program';
import { sameShape } from '../engine/shape';
import type { TensorStore } from '../io/safetensors';
import type { ModelContext } from '../model/layers';
import { Parameters, WeightStore } from '../model/parameters';
import { unet2d, unet2dInputs, type UNet2DConfig } from '../model/unet2d';
import { tolerances, type CaseFolder, type CaseReport } from './report';

const IO = 'io.safetensors';
const weightsName = /^diffusion_pytorch_model(?:\.([\w-]+))?\.safetensors(\.index\.json)?$/;

/** Files of weights, or the index of their shards, by variant: '' for the plain one, else `fp16`, `bf16`, …. */
export function weightFiles(folder: CaseFolder): Map<string, string> {
  const found = new Map<string, string>();
  for (const file of folder.files) {
    const match = weightsName.exec(file);
    if (match) found.set(match[1] ?? '', file);
  }
  if (found.size === 0) throw new BruitError('input', `${folder.name} has a config.json, but no diffusion_pytorch_model.safetensors beside it`);
  return found;
}

export async function verifyUNet2D(report: CaseReport, engine: Engine, folder: CaseFolder, config: UNet2DConfig): Promise<void> {
  const io = await folder.tensors(IO);
  for (const name of ['sample', 'timestep']) if (!io.tensors.has(name)) throw new BruitError('input', `${folder.name}/${IO} has no tensor "${name}", which a UNet2DModel's forward pass needs`);
  const weights = weightFiles(folder);
  const inputs = new Set(['sample', 'timestep', 'class_labels']);
  const handled = new Set<string>();
  for (const [variant, file] of weights) {
    // A single file is what the plain names belong to, whatever its variant.
    const suffix = variant && weights.size > 1 ? `_${variant}` : variant && io.tensors.has(`output_${variant}`) ? `_${variant}` : '';
    report.kinds.push(`UNet2DModel forward${suffix ? ` (${variant} weights)` : ''}`);
    for (const name of await verifyWeights(report, engine, folder, config, { io, file, suffix, variant })) handled.add(name);
  }
  // Weights-in-float32 outputs have no file of weights to be computed from, and training records belong to another check.
  for (const name of io.tensors.keys()) {
    if (inputs.has(name) || handled.has(name) || /^\d+\.|^(grad|clipped|param|ema)\.|^grad_norm$/.test(name)) continue;
    report.skip(IO, name, name.startsWith('act.') ? `the model has no module "${name.slice(4)}"` : 'nothing in the case says how to compute it');
  }
}

interface WeightsCase {
  readonly io: TensorStore;
  readonly file: string;
  readonly suffix: string;
  readonly variant: string;
}

/** One file of weights; returns the names that were compared. */
async function verifyWeights(report: CaseReport, engine: Engine, folder: CaseFolder, config: UNet2DConfig, { io, file, suffix, variant }: WeightsCase): Promise<string[]> {
  const activationPrefix = `act${suffix}.`;
  const wanted = new Set([...io.tensors.keys()].filter((name) => name.startsWith(activationPrefix)).map((name) => name.slice(activationPrefix.length)));
  const tapped = new Map<string, Tensor>();
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const ctx: ModelContext = {
    graph,
    parameters,
    tap: (path, value) => void (wanted.has(path) && tapped.set(path, value)),
    wantsTap: (path) => wanted.has(path),
  };
  const [n, , height, width] = io.tensors.get('sample')!.shape as [number, number, number, number];
  const leaves = unet2dInputs(ctx, config, [n, height, width]);
  const output = unet2d(ctx, config, leaves);
  const store = new WeightStore(engine, parameters.specs.values());
  try {
    await store.load(await folder.tensors(file));
    const program = await compile(engine, graph, { outputs: [...tapped.values(), output], bindings: store.bindings(parameters), label: 'UNet2DModel' });
    try {
      for (const leaf of [leaves.sample, leaves.timestep, leaves.classLabels]) if (leaf) program.write(leaf, await readInput(io, leaf));
      program.run();
      const compared: string[] = [];
      const check = async (name: string, actual: Float32Array, tolerance: number) => {
        await report.compare(io, IO, name, actual, (largest) => tolerance * largest);
        compared.push(name);
      };
      // Weights first: then a miss there is not blamed on a layer.
      for (const name of io.tensors.keys()) {
        const module = new RegExp(`^(.+)_${variant}_as_float32$`).exec(name)?.[1];
        if (!variant || module === undefined) continue;
        const weight = [`${module}.weight`, module].find((candidate) => parameters.specs.has(candidate));
        if (weight) await check(name, await store.read(weight), 0);
      }
      for (const [path, value] of tapped) await check(activationPrefix + path, recordedLayout(path, value, await program.read(value)), tolerances.model);
      if (io.tensors.has(`output${suffix}`)) await check(`output${suffix}`, await program.read(output), tolerances.model);
      return compared;
    } finally {
      program.destroy();
    }
  } finally {
    store.destroy();
  }
}

/** An input leaf's values; one time step or label for the whole batch is repeated. */
async function readInput(io: TensorStore, leaf: Tensor): Promise<Float32Array | Int32Array> {
  if (!io.tensors.has(leaf.name)) throw new BruitError('input', `${io.name} has no tensor "${leaf.name}", which this model's config asks for`);
  const { shape } = io.tensors.get(leaf.name)!;
  const values = leaf.dtype === 'i32' ? await io.readI32(leaf.name) : await io.readF32(leaf.name);
  if (sameShape(shape, leaf.shape)) return values;
  if (leaf.shape.length === 1 && values.length === 1) return leaf.dtype === 'i32' ? new Int32Array(leaf.shape[0]!).fill(values[0]!) : new Float32Array(leaf.shape[0]!).fill(values[0]!);
  throw new BruitError('input', `${io.name}: ${leaf.name} is [${shape.join(',')}], but the config asks for [${leaf.shape.join(',')}]`);
}

/** From the engine's channels-last order to PyTorch's: images to NCHW, and the group norm before an attention, which works on [N,C,T]. */
export function recordedLayout(path: string, { shape }: Tensor, data: Float32Array): Float32Array {
  if (!(shape.length === 4 || (shape.length === 3 && path.endsWith('group_norm')))) return data;
  const [n, channels] = [shape[0]!, shape[shape.length - 1]!];
  const pixels = data.length / n / channels;
  const out = new Float32Array(data.length);
  for (let i = 0; i < n; i++) for (let p = 0; p < pixels; p++) for (let c = 0; c < channels; c++) out[(i * channels + c) * pixels + p] = data[(i * pixels + p) * channels + c]!;
  return out;
}
