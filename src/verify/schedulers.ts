/** Scheduler trajectories over a toy denoiser, with recorded noise: `cases.json` names class, config and steps, `io.safetensors` holds NAME.{first,middle,last,timesteps,sigmas,noise}. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { isJsonObject } from '../io/json';
import type { TensorStore } from '../io/safetensors';
import { recomputeSchedulerCase, type SchedulerCase } from '../sampler/scheduler_case';
import { parseSchedulerConfig } from '../sampler/scheduler_config';
import { tolerances, type CaseFolder, type CaseReport } from './report';

const IO = 'io.safetensors';

const isSchedulerCase = (json: unknown): json is SchedulerCase => isJsonObject(json) && typeof json.class === 'string' && isJsonObject(json.config);

export const isSchedulersCase = (json: unknown): json is Readonly<Record<string, unknown>> => isJsonObject(json) && Object.values(json).some(isSchedulerCase);

export async function verifySchedulers(report: CaseReport, engine: Engine, folder: CaseFolder, json: Readonly<Record<string, unknown>>): Promise<void> {
  if (typeof json._about === 'string' && !json._about.includes('(t+1)/(t+2)')) throw new BruitError('input', `${folder.name}/cases.json: its denoiser (${json._about}) is not the one that bruit knows, scale_model_input(x,t)*(t+1)/(t+2)`);
  const io = await folder.tensors(IO);
  if (io.tensors.get('sample')?.shape.length !== 4) throw new BruitError('input', `${folder.name}/${IO} has no tensor "sample" [N,C,H,W]`);
  const cases = Object.entries(json).filter((entry): entry is [string, SchedulerCase] => isSchedulerCase(entry[1]));
  report.kinds.push(`${cases.length} scheduler trajectories`);
  for (const [name, c] of cases) await verifyCase(report, engine, io, `${folder.name}/cases.json`, name, c);
}

async function verifyCase(report: CaseReport, engine: Engine, io: TensorStore, where: string, name: string, c: SchedulerCase): Promise<void> {
  // Parsed first, so that an error names the file.
  const config = parseSchedulerConfig({ _class_name: c.class, ...c.config }, `${where}: ${name}`);
  const noise = io.tensors.has(`${name}.noise`) ? await io.readF32(`${name}.noise`) : undefined;
  const result = await recomputeSchedulerCase(engine, { ...c, config }, { shape: io.tensors.get('sample')!.shape, data: await io.readF32('sample') }, noise);
  for (const part of ['timesteps', 'sigmas', 'first', 'middle', 'last'] as const) {
    const value = result[part];
    if (value && io.tensors.has(`${name}.${part}`)) await report.compare(io, IO, `${name}.${part}`, value, (largest) => tolerances.trajectory * largest);
  }
}
