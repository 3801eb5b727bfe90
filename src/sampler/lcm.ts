import { check } from '../engine/errors';
import { boundOf, predict } from './prediction';
import { bounded, combine, finishProgram, NOISE, SAMPLE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';

/** Standard deviation of the data that the boundary condition assumes. */
const SIGMA_DATA = 0.5;

/**
 * Multi-step consistency sampling (Luo et al. 2023, "Latent Consistency Models", algorithm 3): each step goes straight to x0 and noises it again for the
 * next time step; the last one does not. Time steps are taken evenly from the `original_inference_steps` that the model was distilled with.
 */
export function lcm(config: SchedulerConfig, { alphasCumprod }: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { numInferenceSteps: count, begin, original_inference_steps: original = config.original_inference_steps } = options;
  const { num_train_timesteps: total, prediction_type, timestep_scaling: scaling } = config;
  check(Number.isInteger(original) && original >= 1 && original <= total, 'config', () => `original_inference_steps is ${original}; allowed: 1 to num_train_timesteps (${total})`);
  check(count <= original, 'config', () => `numInferenceSteps is ${count}; allowed: at most original_inference_steps (${original}), which the steps are taken from`);
  const stride = Math.floor(total / original);
  const timesteps = Array.from({ length: count }, (_, i) => (original - Math.floor((i * original) / count)) * stride - 1);
  const bound = boundOf(config);
  const drafts = timesteps.map((t, i): StepDraft => {
    const predicted = predict(prediction_type, alphasCumprod[t]!);
    const scaled = t * scaling;
    const [skip, out] = [SIGMA_DATA ** 2 / (scaled ** 2 + SIGMA_DATA ** 2), scaled / Math.sqrt(scaled ** 2 + SIGMA_DATA ** 2)];
    const denoised = combine([out, bounded(bound, predicted.x0)], [skip, SAMPLE]);
    const next = timesteps[i + 1];
    if (next === undefined) return { timestep: t, predX0: predicted.x0, next: denoised };
    const bar = alphasCumprod[next]!;
    return { timestep: t, predX0: predicted.x0, next: combine([Math.sqrt(bar), denoised], [Math.sqrt(1 - bar), NOISE]), drawsNoise: true };
  });
  return finishProgram(config._class_name, drafts, { bound, begin });
}
