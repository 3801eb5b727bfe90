/**
 * Whole pipelines against their recorded runs: `runs/runs.json` says for each run its class, schedulers and arguments, `runs/NAME.safetensors`
 * holds the draws and what was computed from them. What is particular to a class of pipelines is one {@link PipelineClass} (pipelines/).
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { RecordedDraws } from '../engine/torch_rng';
import { numel, type Shape } from '../engine/shape';
import { overlayFolder, siblingFolder, type ModelFolder } from '../io/folder';
import { isJsonObject } from '../io/json';
import type { TensorStore } from '../io/safetensors';
import { tolerances, type CaseFolder, type CaseReport, type Numbers } from './report';

export const RUNS = 'runs/runs.json';
const TEXT = 'runs/text.safetensors';

/** How runs of one class of pipelines are recomputed. */
export interface PipelineClass {
  /** What runs.json calls it: diffusers' class names. */
  readonly names: readonly string[];
  /** Recomputes a run. Returns values by their recorded names, in order of execution and in PyTorch's layout; those that the record lacks are left aside. */
  run(run: PipelineRun): Promise<Readonly<Record<string, Numbers>>>;
  /** The same for `runs/text.safetensors`, which belongs to the prompts of `run`. */
  text?(run: PipelineRun): Promise<Readonly<Record<string, Numbers>>>;
}

export interface RecordedTensor {
  readonly shape: Shape;
  readonly data: Float32Array;
}

/** One run as it was recorded. */
export interface PipelineRun {
  readonly engine: Engine;
  readonly name: string;
  /** Name of the pipeline's class. */
  readonly pipeline: string;
  /** Where the components are: the case's own first, then those of the folder that its note names. */
  readonly folder: ModelFolder;
  /** Arguments of the call under diffusers' names; where a tensor was given, it stands here. */
  readonly call: Readonly<Record<string, unknown>>;
  /** Configurations by the scheduler's folder. */
  readonly schedulers: Readonly<Record<string, object>>;
  /** The run's whole entry of runs.json. */
  readonly entry: Readonly<Record<string, unknown>>;
  /** The recorded draws, in order. */
  readonly draws: RecordedDraws;
  /** Whether the run has a record of this name. */
  records(name: string): boolean;
  /** A LoRA file to be loaded first. */
  readonly lora?: TensorStore;
}

/** Runs the folder's records through its pipelines. @throws BruitError `input` for a class that is not supported. */
export async function verifyPipeline(report: CaseReport, engine: Engine, folder: CaseFolder, classes: readonly PipelineClass[]): Promise<void> {
  const runs = await folder.json(RUNS);
  check(isJsonObject(runs), 'input', () => `${folder.name}/${RUNS} must be an object with an entry for each run`);
  const loras = folder.files.filter((file) => /^[^/]*lora[^/]*\.safetensors$/i.test(file)).sort();
  let textDone = !folder.files.includes(TEXT);
  for (const [name, entry] of Object.entries(runs)) {
    check(isJsonObject(entry) && typeof entry.pipeline === 'string' && isJsonObject(entry.call), 'input', () => `${folder.name}/${RUNS}: ${name} names no "pipeline" with a "call"`);
    const kind = classes.find(({ names }) => names.includes(entry.pipeline as string));
    if (!kind) throw new BruitError('input', `${folder.name}: ${name} is a run of ${entry.pipeline as string}, which is not supported (yet); known are ${classes.flatMap(({ names }) => names).join(', ')}`);
    const file = `runs/${name}.safetensors`;
    const record = await folder.tensors(file);
    report.kinds.push(`${name} (${entry.pipeline as string})`);
    // Files in several namings are one adapter: each must give the record.
    for (const [i, lora] of (loras.length ? loras : [undefined]).entries()) {
      const run = await recordedRun(engine, folder, { name, entry, record, ...(lora !== undefined && { lora: await folder.tensors(lora) }) });
      const computed = Object.entries(await kind.run(run)).filter(([key]) => record.tensors.has(key));
      for (const [key, data] of computed) await report.compare(record, file, key, data, (largest) => tolerance(key) * largest, i > 0 ? { with: lora! } : {});
      if (i > 0) continue;
      const known = new Set(computed.map(([key]) => key));
      for (const key of record.tensors.keys()) if (!known.has(key) && !/^(in|draw)\./.test(key)) report.skip(file, key, 'the pipeline computes nothing of this name');
      const left = run.draws.left;
      check(left === 0, 'input', () => `${folder.name}: ${name} records ${left} draws more than the pipeline takes`);
      if (!textDone && kind.text) textDone = await verifyText(report, folder, kind, run);
    }
  }
  if (!textDone) for (const key of (await folder.tensors(TEXT)).tensors.keys()) report.skip(TEXT, key, 'no run has as many prompts');
}

async function verifyText(report: CaseReport, folder: CaseFolder, kind: PipelineClass, run: PipelineRun): Promise<boolean> {
  const record = await folder.tensors(TEXT);
  const computed = Object.entries(await kind.text!(run)).filter(([key]) => record.tensors.has(key));
  // It may belong to the prompts of another run.
  if (computed.some(([key, data]) => data.length !== numel(record.tensors.get(key)!.shape))) return false;
  for (const [key, data] of computed) {
    // Token ids have nothing to round.
    await report.compare(record, TEXT, key, data, (largest) => (record.tensors.get(key)!.dtype.startsWith('I') ? 0 : tolerances.model * largest));
  }
  return true;
}

/** Single calls of a model are held to a model's tolerance, what many steps led to is not. */
function tolerance(name: string): number {
  if (/(^|\.)(timesteps|sigmas)$/.test(name)) return tolerances.trajectory;
  return /(^|\.)(model_output\.0|step_sample\.0|unet_input)$|^in\./.test(name) ? tolerances.model : tolerances.pipeline;
}

async function recordedRun(engine: Engine, folder: CaseFolder, { name, entry, record, lora }: { name: string; entry: Readonly<Record<string, unknown>>; record: TensorStore; lora?: TensorStore }): Promise<PipelineRun> {
  // A record may share the components of another; its note is where that is said.
  const elsewhere = /components are those of (\S*[^\s.,;:])/.exec(typeof entry.note === 'string' ? entry.note : '')?.[1];
  const call: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(entry.call as Record<string, unknown>)) {
    const tensor = typeof value === 'string' ? /^tensor (\S+)$/.exec(value)?.[1] : undefined;
    // What JSON could not hold is in the entry itself.
    const written = value === 'dict' ? entry[key] : value;
    call[key] = tensor === undefined ? written : await recordedArgument(folder, record, tensor);
  }
  const draws: RecordedTensor[] = [];
  for (let i = 0; record.tensors.has(`draw.${i}`); i++) draws.push({ shape: record.tensors.get(`draw.${i}`)!.shape, data: await record.readF32(`draw.${i}`) });
  return {
    engine,
    name,
    pipeline: entry.pipeline as string,
    folder: elsewhere === undefined ? await pipelineFolder(folder, entry.pipeline as string) : overlayFolder(folder.model, siblingFolder(folder.model, elsewhere)),
    call,
    schedulers: isJsonObject(entry.schedulers) ? (entry.schedulers as Record<string, object>) : {},
    entry,
    draws: new RecordedDraws(draws, `${folder.name}: ${name}`),
    records: (tensor) => record.tensors.has(tensor),
    ...(lora && { lora }),
  };
}

/** Arguments that several runs share are not in the run's own file, but with the texts, without `in.`. */
async function recordedArgument(folder: CaseFolder, record: TensorStore, name: string): Promise<RecordedTensor> {
  const texts = 'runs/text.safetensors';
  const [store, key] = record.tensors.has(name) || !folder.files.includes(texts) ? [record, name] : [await folder.tensors(texts), name.replace(/^in\./, '')];
  return { data: await store.readF32(key), shape: store.tensors.get(key)!.shape };
}

/** The folder with the run's model_index.json: a case may hold several pipelines (the stages of a cascade), each in a sub-folder. */
async function pipelineFolder(folder: CaseFolder, pipeline: string): Promise<ModelFolder> {
  for (const file of folder.files) {
    const path = /^([^/]+)\/model_index\.json$/.exec(file)?.[1];
    if (path === undefined) continue;
    const index = await folder.json(file);
    if (isJsonObject(index) && index._class_name === pipeline) return siblingFolder(folder.model, path);
  }
  return folder.model;
}

/** An argument that was given as a tensor. */
export function tensorArgument({ name, call }: PipelineRun, key: string): RecordedTensor | undefined {
  const value = call[key];
  if (value === undefined || value === null) return undefined;
  if (isJsonObject(value) && value.data instanceof Float32Array) return value as unknown as RecordedTensor;
  throw new BruitError('input', `${name}: the argument ${key} is ${JSON.stringify(value)}, but a recorded tensor was expected`);
}
