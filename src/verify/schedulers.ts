/** Scheduler trajectories over a toy denoiser, with recorded noise: `cases.json` names class, config and steps, `io.safetensors` holds NAME.{first,middle,last,timesteps,sigmas,noise}. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { div, mul, shift } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { samplerInput, samplerStep } from '../engine/ops/sampler_step';
import { compile } from '../engine/program';
import { numel } from '../engine/shape';
import { isJsonObject } from '../io/json';
import type { TensorStore } from '../io/safetensors';
import { packProgram, STEP_STRIDE, type SamplerProgram } from '../sampler/program';
import { createSampler, parseSchedulerConfig, type SamplerOptions } from '../sampler/scheduler_config';
import { tolerances, type CaseFolder, type CaseReport } from './report';

const IO = 'io.safetensors';

interface SchedulerCase {
  readonly class: string;
  readonly config: object;
  readonly num_inference_steps: number;
  readonly step_kwargs?: SamplerOptions;
  readonly middle_index?: number;
}

const isSchedulerCase = (json: unknown): json is SchedulerCase => isJsonObject(json) && typeof json.class === 'string' && isJsonObject(json.config);

export const isSchedulersCase = (json: unknown): json is Readonly<Record<string, unknown>> => isJsonObject(json) && Object.values(json).some(isSchedulerCase);

/** The denoiser of the records: scaled input * (t+1)/(t+2). */
const toyModel = (input: Tensor, timestep: Tensor): Tensor => mul(input, reshape(div(shift(timestep, 1), shift(timestep, 2)), [input.shape[0]!, 1, 1, 1]));

export async function verifySchedulers(report: CaseReport, engine: Engine, folder: CaseFolder, json: Readonly<Record<string, unknown>>): Promise<void> {
  if (typeof json._about === 'string' && !json._about.includes('(t+1)/(t+2)')) throw new BruitError('input', `${folder.name}/cases.json: its denoiser (${json._about}) is not the one that bruit knows, scale_model_input(x,t)*(t+1)/(t+2)`);
  const io = await folder.tensors(IO);
  if (io.tensors.get('sample')?.shape.length !== 4) throw new BruitError('input', `${folder.name}/${IO} has no tensor "sample" [N,C,H,W]`);
  const cases = Object.entries(json).filter((entry): entry is [string, SchedulerCase] => isSchedulerCase(entry[1]));
  report.kinds.push(`${cases.length} scheduler trajectories`);
  for (const [name, c] of cases) await verifyCase(report, engine, io, `${folder.name}/cases.json`, name, c);
}

async function verifyCase(report: CaseReport, engine: Engine, io: TensorStore, where: string, name: string, c: SchedulerCase): Promise<void> {
  const config = parseSchedulerConfig({ _class_name: c.class, ...c.config }, `${where}: ${name}`);
  const program = createSampler(config, { numInferenceSteps: c.num_inference_steps, ...c.step_kwargs });
  const check = async (part: string, actual: Float32Array | readonly number[]) => {
    if (io.tensors.has(`${name}.${part}`)) await report.compare(io, IO, `${name}.${part}`, actual, (largest) => tolerances.trajectory * largest);
  };
  await check('timesteps', program.timesteps);
  if (program.sigmas) await check('sigmas', program.sigmas);
  const last = program.steps.length - 1;
  const points: Readonly<Record<string, number>> = { first: 0, middle: c.middle_index ?? Math.floor((last + 1) / 2), last };
  for (const [part, value] of await trajectory(engine, io, name, program, points)) await check(part, value);
}

/** The sample after the steps named in `points`, computed on the GPU. */
async function trajectory(engine: Engine, io: TensorStore, name: string, sampler: SamplerProgram, points: Readonly<Record<string, number>>): Promise<[string, Float32Array][]> {
  const { shape } = io.tensors.get('sample')!;
  const graph = new Graph();
  const state = {
    table: graph.constant('table', [sampler.steps.length, STEP_STRIDE], packProgram(sampler)),
    counter: graph.state('counter', [1], 'u32'),
    sample: graph.state('sample', shape),
    slots: graph.state('slots', sampler.slots ? [sampler.slots, numel(shape)] : [1]),
  };
  const { input, timestep } = samplerInput(state);
  const noise = sampler.noiseDraws > 0 ? graph.input('noise', [sampler.noiseDraws, ...shape]) : undefined;
  samplerStep(state, {
    output: toyModel(input, timestep),
    ...(noise && { noise: { kind: 'recorded' as const, tensor: noise } }),
    varianceHalf: sampler.varianceHalf,
    bound: sampler.bound,
  });
  const program = await compile(engine, graph, { outputs: [state.sample], label: name });
  try {
    program.write(state.sample, (await io.readF32('sample')).map((v) => v * sampler.initNoiseSigma));
    if (noise) {
      const recorded = io.tensors.get(`${name}.noise`);
      if (!recorded || numel(recorded.shape) !== numel(noise.shape)) {
        throw new BruitError('input', `${io.name}: ${sampler.className} draws noise [${noise.shape.join(',')}], but ${name}.noise is ${recorded ? `[${recorded.shape.join(',')}]` : 'missing'}`);
      }
      program.write(noise, await io.readF32(`${name}.noise`));
    }
    const reached: [string, Float32Array][] = [];
    for (let step = 0; step < sampler.steps.length; step++) {
      program.run();
      const here = Object.keys(points).filter((point) => points[point] === step);
      if (here.length) {
        const value = await program.read(state.sample);
        for (const point of here) reached.push([point, value]);
      }
    }
    return reached;
  } finally {
    program.destroy();
  }
}
