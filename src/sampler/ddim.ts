import { BruitError, check } from '../engine/errors';
import { boundOf, epsilonFrom, finiteAlphaBar, predict } from './prediction';
import { bounded, combine, finishProgram, NOISE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';
import { spacedTimesteps, trailingTimesteps } from './schedules';

const f32 = Math.fround;

/** DDIM (Song et al. 2020, eq. 12): deterministic for eta 0, DDPM's noise for eta 1. Noise is drawn in every step when eta > 0, the last too. */
export function ddim(config: SchedulerConfig, { alphasCumprod }: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { numInferenceSteps: count, begin, eta = 0, use_clipped_model_output: reuseBounded = false } = options;
  const { num_train_timesteps: total, prediction_type } = config;
  check(count <= total, 'config', () => `numInferenceSteps is ${count}; allowed: at most num_train_timesteps (${total})`);
  check(Number.isFinite(eta) && eta >= 0, 'config', () => `eta is ${eta}; allowed: a number of at least 0`);
  const bound = boundOf(config);
  const finalAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
  const drafts = spacedTimesteps(config.timestep_spacing, total, count, config.steps_offset, true).map((t): StepDraft => {
    const previous = t - Math.floor(total / count);
    const alphaBar = finiteAlphaBar(alphasCumprod[t]!, bound);
    const alphaBarPrevious = previous >= 0 ? alphasCumprod[previous]! : finalAlphaBar;
    // In float32, as the library: with eta near 1 the rest is a small difference, and its root is far from what f64 would give.
    const variance = f32(f32((1 - alphaBarPrevious) / (1 - alphaBar)) * f32(1 - f32(alphaBar / alphaBarPrevious)));
    const std = eta === 0 ? 0 : f32(eta * f32(Math.sqrt(variance)));
    const rest = f32(1 - alphaBarPrevious - f32(std ** 2));
    if (!(rest > -1e-6)) throw new BruitError('config', `eta is ${eta}; at timestep ${t} that is more noise than the process has (allowed: 0 to 1)`);
    const predicted = predict(prediction_type, alphaBar);
    const x0 = bounded(bound, predicted.x0);
    const epsilon = reuseBounded ? epsilonFrom(x0, Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)) : predicted.epsilon;
    return {
      timestep: t,
      predX0: predicted.x0,
      next: combine([Math.sqrt(alphaBarPrevious), x0], [Math.sqrt(Math.max(rest, 0)), epsilon], [std, NOISE]),
      drawsNoise: eta > 0,
    };
  });
  return finishProgram(config._class_name, drafts, { bound, begin });
}

/**
 * DDIM run backwards, from an image to its noise (diffusers' DDIMInverseScheduler): each step goes from alphas_cumprod at the time step to that one
 * stride later. The first time step lies before 0, where the sample is clean; the model is given that number as it is.
 */
export function ddimInverse(config: SchedulerConfig, { alphasCumprod }: NoiseTables, { numInferenceSteps: count, begin }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { num_train_timesteps: total, timestep_spacing: spacing } = config;
  check(count <= total, 'config', () => `numInferenceSteps is ${count}; allowed: at most num_train_timesteps (${total})`);
  const ascending = (spacing === 'leading' ? spacedTimesteps(spacing, total, count, config.steps_offset, true) : trailingTimesteps(total, count)).reverse();
  const stride = spacing === 'leading' ? Math.floor(total / count) : total / count;
  const before = Math.trunc(ascending[0]! - stride);
  const bound = boundOf(config);
  const drafts = [before, ...ascending.slice(0, -1)].map((t): StepDraft => {
    const alphaBar = t >= 0 ? alphasCumprod[t]! : config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
    const target = alphasCumprod.at(t + Math.floor(total / count))!;
    const predicted = predict(config.prediction_type, alphaBar);
    return {
      timestep: t,
      predX0: predicted.x0,
      next: combine([Math.sqrt(target), bounded(bound, predicted.x0)], [Math.sqrt(1 - target), predicted.epsilon]),
    };
  });
  return finishProgram(config._class_name, drafts, { bound, begin });
}
