/** Cases of improved-diffusion's hybrid loss: `case.json` names a noise schedule and loss type for each, `io.safetensors` holds `NAME.*` and `grad.NAME`. */
import { gradients } from '../engine/autodiff';
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { reshape } from '../engine/ops/reshape';
import { slice } from '../engine/ops/copy';
import { total } from '../engine/ops/sum';
import { compile } from '../engine/program';
import { isJsonObject } from '../io/json';
import { DiffusionProcess } from '../sampler/diffusion_process';
import type { PredictionType } from '../sampler/prediction';
import { cosineBetas, linspace } from '../sampler/schedules';
import { addNoise, diffusionLoss, StepCoefficients, type LossConfig } from '../train/loss';
import { tolerances, type CaseFolder, type CaseReport } from './report';

const IO = 'io.safetensors';

interface HybridCase {
  readonly beta_schedule: string;
  readonly num_timesteps: number;
  readonly loss_type: string;
  readonly model_mean_type: string;
}

export interface HybridLossCase {
  readonly cases: Readonly<Record<string, HybridCase>>;
  /** By case: relative error of each sample's vb gradient in float32. */
  readonly vb_grad_relative_error_of_float32?: Readonly<Record<string, readonly number[]>>;
}

export const isHybridLossCase = (json: unknown): json is HybridLossCase => isJsonObject(json) && isJsonObject(json.cases) && Object.values(json.cases).every((c) => isJsonObject(c) && 'loss_type' in c && 'beta_schedule' in c);

/** improved-diffusion's get_named_beta_schedule, in float64 as there. */
function namedBetas(name: string, count: number): Float64Array {
  if (name === 'cosine') return cosineBetas(count);
  // Scaled so that fewer steps reach as much noise.
  if (name === 'linear') return linspace((1000 / count) * 1e-4, (1000 / count) * 0.02, count);
  throw new BruitError('input', `case.json: beta_schedule "${name}" is unknown; improved-diffusion has "linear" and "cosine"`);
}

function choose<T>(key: string, value: string, choices: Readonly<Record<string, T>>): T {
  const chosen = Object.hasOwn(choices, value) ? choices[value] : undefined;
  if (chosen === undefined) throw new BruitError('input', `case.json: ${key} "${value}" is not supported; supported are ${Object.keys(choices).join(', ')}`);
  return chosen;
}

export async function verifyHybridLoss(report: CaseReport, engine: Engine, folder: CaseFolder, json: HybridLossCase): Promise<void> {
  report.kinds.push('hybrid loss');
  const io = await folder.tensors(IO);
  for (const [name, hybrid] of Object.entries(json.cases)) {
    const steps = hybrid.num_timesteps;
    const process = new DiffusionProcess(namedBetas(hybrid.beta_schedule, steps));
    const config: LossConfig = {
      predictionType: choose<PredictionType>('model_mean_type', hybrid.model_mean_type, { EPSILON: 'epsilon', START_X: 'sample' }),
      // The rescaled loss divides the bound by 1000 per time step instead of summing it.
      vlbWeight: choose('loss_type', hybrid.loss_type, { RESCALED_MSE: steps / 1000, MSE: 1 }),
    };
    const leafNames = ['x0', 'noise', 't', 'model_output'] as const;
    for (const leaf of leafNames) if (!io.tensors.has(`${name}.${leaf}`)) throw new BruitError('input', `${folder.name}/${IO} has no tensor "${name}.${leaf}"`);

    const graph = new Graph();
    const shapeOf = (leaf: string) => io.tensors.get(`${name}.${leaf}`)!.shape;
    const [x0, noise, output] = [graph.input('x0', shapeOf('x0')), graph.input('noise', shapeOf('noise')), graph.input('model_output', shapeOf('model_output'))];
    const t = graph.input('t', shapeOf('t'), 'i32');
    const coefficients = new StepCoefficients(process, config, t);
    const xt = addNoise(coefficients, x0, noise);
    const terms = diffusionLoss(coefficients, config, { x0, noise, xt, output });
    const vlb = terms.vlb!;
    const { predX0, mean, logVariance } = terms.hybrid!;
    const channels = x0.shape[1]!;
    const [gradient, vlbGradient] = [gradients(terms.loss, [output])[0]!, gradients(reshape(total(vlb), [1]), [output])[0]!];
    const values: Record<string, Tensor> = { xt, pred_xstart: predX0, p_mean: mean, p_log_variance: logVariance, mse_per_sample: terms.simple, vb_per_sample: vlb, loss_per_sample: terms.perSample, loss: terms.loss };
    const varianceGradient = slice(vlbGradient, 1, channels, channels);
    const program = await compile(engine, graph, { outputs: [...Object.values(values), gradient, varianceGradient], label: `hybrid loss ${name}` });
    try {
      for (const leaf of [x0, noise, output]) program.write(leaf, await io.readF32(`${name}.${leaf.name}`));
      program.write(t, await io.readI32(`${name}.t`));
      program.run();
      const weight = config.vlbWeight!;
      for (const [key, value] of Object.entries(values)) {
        const full = `${name}.${key}`;
        if (!io.tensors.has(full)) continue;
        const data = await program.read(value);
        await report.compare(io, IO, full, key === 'vb_per_sample' ? data.map((v) => v * weight) : data, (largest) => (/loss|_per_sample/.test(key) ? tolerances.loss : tolerances.trajectory) * largest);
      }
      if (io.tensors.has(`grad.${name}`)) await report.compare(io, IO, `grad.${name}`, await program.read(gradient), (largest) => tolerances.gradient * largest);
      const vlbName = `grad.${name}.vb`;
      if (io.tensors.has(vlbName)) {
        // What float32 itself does not know of a late time step's tiny gradient cannot be asked for.
        const known = json.vb_grad_relative_error_of_float32?.[name] ?? [];
        await report.compareSamples(io, IO, vlbName, (await program.read(varianceGradient)).map((v) => v * weight), (n) => Math.max(tolerances.gradient, 4 * (known[n] ?? 0)));
      }
    } finally {
      program.destroy();
    }
  }
}
