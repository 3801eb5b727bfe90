/**
 * One recorded gradient computation of a denoiser, without an optimizer: `case.json` says `loss` and `schedule`, `io.safetensors` holds the batch
 * (`x0`, `noise`, `t` and the model's other inputs), `loss`, `grad.PARAMETER`, `grad_of_INPUT`, `grad_norm` and `clipped.PARAMETER`.
 */
import { gradients } from '../engine/autodiff';
import type { Engine } from '../engine/device';
import { Graph, type Tensor } from '../engine/graph';
import { add, cast, sqrt } from '../engine/ops/pointwise';
import { sumSquares } from '../engine/ops/sum';
import { compile } from '../engine/program';
import { isJsonObject } from '../io/json';
import { fromStored, Parameters, WeightStore } from '../model/parameters';
import { DiffusionProcess } from '../sampler/diffusion_process';
import { noiseTables, parseSchedulerConfig } from '../sampler/scheduler_config';
import { addNoise, diffusionLoss, StepCoefficients } from '../train/loss';
import { IO, readInput, recordedInputs, weightFiles, type ModelClass, type OpenModel } from './model';
import { tolerances, type CaseFolder, type CaseReport } from './report';
import { compareTensors, largestRecorded, lossConfig } from './training';

interface GradientCase {
  readonly loss: string;
  readonly schedule: Readonly<Record<string, unknown>>;
  /** In words ("clipping to norm 1.0"), or as training cases have it. */
  readonly clip?: unknown;
}

export const isGradientCase = (json: unknown): json is GradientCase => isJsonObject(json) && typeof json.loss === 'string' && isJsonObject(json.schedule) && json.optimizer === undefined;

function maxNorm({ clip }: GradientCase): number | undefined {
  if (isJsonObject(clip) && typeof clip.max_norm === 'number') return clip.max_norm;
  const words = typeof clip === 'string' ? /norm (?:of )?([\d.]+\d)/.exec(clip)?.[1] : undefined;
  return words === undefined ? undefined : Number(words);
}

export async function verifyGradients(report: CaseReport, engine: Engine, folder: CaseFolder, model: ModelClass, denoise: NonNullable<OpenModel['denoise']>, json: GradientCase): Promise<void> {
  report.kinds.push(`${model.names[0]} gradients`);
  const store = await folder.tensors(IO);
  const at = `${folder.name}/case.json`;
  const io = recordedInputs(store);
  const { betas, alphasCumprod } = noiseTables(parseSchedulerConfig({ _class_name: 'DDPMScheduler', ...json.schedule }, at));
  const loss = lossConfig(json, at);

  const graph = new Graph();
  const parameters = new Parameters(graph);
  const leaf = (name: string, rank: number, dtype: 'f32' | 'i32' = 'f32'): Tensor => graph.input(name, io.shape(name, rank), dtype);
  const [x0, noise, t] = [leaf('x0', 4), leaf('noise', 4), leaf('t', 1, 'i32')];
  const coefficients = new StepCoefficients(new DiffusionProcess(betas, alphasCumprod), loss, t);
  const xt = addNoise(coefficients, x0, noise);
  const prediction = denoise({ graph, parameters }, io, xt, cast(t, 'f32'));
  const terms = diffusionLoss(coefficients, loss, { x0, noise, xt, output: prediction });

  const trained = [...parameters.specs.values()].filter((s) => s.trainable);
  const candidates: (readonly [string, Tensor])[] = [['xt', xt], ...graph.leaves.filter((l) => l.kind === 'input').map((l) => [l.name, l] as const)];
  const inputs = new Map(candidates.filter(([name]) => io.has(`grad_of_${name}`)));
  const all = gradients(terms.loss, [...trained.map((s) => parameters.tensors.get(s.name)!), ...inputs.values()]);
  const norm = sqrt(all.slice(0, trained.length).map(sumSquares).reduce(add));
  const weights = new WeightStore(engine, parameters.specs.values());
  try {
    await weights.load(await folder.tensors(weightFiles(folder, model).values().next().value!));
    const program = await compile(engine, graph, { outputs: [xt, prediction, terms.loss, norm, ...all], bindings: weights.bindings(parameters), label: 'gradients' });
    try {
      const leaves = graph.leaves.filter((l) => l.kind === 'input');
      for (const l of leaves) program.write(l, await readInput(store, l));
      program.run();
      const check = async (name: string, value: Tensor, allowed: (largest: number) => number) => {
        if (io.has(name)) await report.compare(store, IO, name, await program.read(value), allowed);
      };
      const relative = (tolerance: number) => (largest: number) => tolerance * largest;
      await check('xt', xt, relative(tolerances.trajectory));
      await check('prediction', prediction, relative(tolerances.model));
      await check('loss', terms.loss, relative(tolerances.loss));
      await check('grad_norm', norm, relative(tolerances.gradient));
      const largest = await largestRecorded(store, 'grad.');
      const named = [];
      for (const [i, { name, shape, layout }] of trained.entries()) named.push({ name, shape, data: fromStored(await program.read(all[i]!), shape, layout) });
      await compareTensors(report, { store, file: IO, prefix: 'grad' }, named, () => tolerances.gradient * largest);
      // Inputs' gradients are small beside the weights': each is measured by itself.
      for (const [i, name] of [...inputs.keys()].entries()) await check(`grad_of_${name}`, all[trained.length + i]!, relative(tolerances.gradient));
      const limit = maxNorm(json);
      if (limit !== undefined) {
        const factor = Math.min(1, limit / ((await program.read(norm))[0]! + 1e-6));
        await compareTensors(report, { store, file: IO, prefix: 'clipped' }, named.map((g) => ({ ...g, data: g.data.map((v) => v * factor) })), () => tolerances.gradient * largest * factor);
      }
      const known = new Set([...leaves.map((l) => l.name), ...report.comparisons.filter((c) => c.file === IO).map((c) => c.name)]);
      for (const name of store.tensors.keys()) if (!known.has(name)) report.skip(IO, name, 'nothing in the case says how to compute it');
    } finally {
      program.destroy();
    }
  } finally {
    weights.destroy();
  }
}
