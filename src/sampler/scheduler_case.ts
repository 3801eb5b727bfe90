/** Recomputing a recorded trajectory of one of diffusers' schedulers on the GPU: what `verify` does with `schedulers` cases. */
import type { Engine } from '../engine/device';
import { div, mul, shift } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { numel, type Shape } from '../engine/shape';
import { createGpuSampler } from './sample';
import { createSampler, type SamplerOptions } from './scheduler_config';

/** An entry of the case's cases.json. */
export interface SchedulerCase {
  readonly class: string;
  readonly config: object;
  readonly num_inference_steps: number;
  /** Arguments of the scheduler's `step`, such as `eta`. */
  readonly step_kwargs?: SamplerOptions;
  /** Half the steps if it is not said. */
  readonly middle_index?: number;
}

export interface SchedulerTrajectory {
  readonly timesteps: Float32Array;
  /** diffusers' sigmas, where the class has them. */
  readonly sigmas: Float32Array | undefined;
  /** x after the first step, step number `middle_index` and the last, of the sample's shape. */
  readonly first: Float32Array;
  readonly middle: Float32Array;
  readonly last: Float32Array;
}

/**
 * Runs the case with its denoiser, model_output = scale_model_input(x, t) · (t + 1)/(t + 2).
 * @param sample standard normal start noise [N, …].
 * @param noise the recorded draws [draws, N, …], where the scheduler takes any.
 * @throws BruitError `config` for an unknown scheduler or setting, `input` if `noise` does not hold as many draws as the scheduler takes.
 */
export async function recomputeSchedulerCase(engine: Engine, c: SchedulerCase, sample: { readonly shape: Shape; readonly data: Float32Array }, noise?: Float32Array): Promise<SchedulerTrajectory> {
  const program = createSampler({ _class_name: c.class, ...c.config }, { numInferenceSteps: c.num_inference_steps, ...c.step_kwargs });
  // The denoiser and the step are element-wise but for the images' quantile, so only the first dimension counts.
  const n = sample.shape[0]!;
  const sampler = await createGpuSampler(engine, {
    program,
    shape: [n, numel(sample.shape) / n, 1, 1],
    model: (_, x, timestep) => {
      const t = reshape(timestep, [n, 1, 1, 1]);
      return mul(x, div(shift(t, 1), shift(t, 2)));
    },
    latents: sample.data,
    noise: noise ?? new Float32Array(0),
    preview: true,
  });
  try {
    const visited = new Map<number, Float32Array>();
    const total = program.steps.length;
    const points = [0, c.middle_index ?? Math.floor(total / 2), total - 1];
    await sampler.run({ onPreview: ({ step, sample: x }) => void (points.includes(step) && visited.set(step, x)) });
    const [first, middle, last] = points.map((step) => visited.get(step)!);
    return { timesteps: Float32Array.from(program.timesteps), sigmas: program.sigmas ? Float32Array.from(program.sigmas) : undefined, first: first!, middle: middle!, last: last! };
  } finally {
    sampler.destroy();
  }
}
