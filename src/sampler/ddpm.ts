import { check } from '../engine/errors';
import { boundOf, finiteAlphaBar, predict } from './prediction';
import { bounded, combine, finishProgram, NOISE, SAMPLE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';
import { spacedTimesteps } from './schedules';

const f32 = Math.fround;

/**
 * Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2): x_{t-1} ~ N(posterior mean of (x_t, predicted x0), variance), over the time steps actually
 * visited. No noise is drawn at t = 0.
 */
export function ddpm(config: SchedulerConfig, { alphasCumprod }: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { num_train_timesteps: total, variance_type: variance, prediction_type } = config;
  const count = options.numInferenceSteps;
  check(count <= total, 'config', () => `numInferenceSteps is ${count}; allowed: at most num_train_timesteps (${total})`);
  const custom = options.timesteps;
  const timesteps = custom ?? spacedTimesteps(config.timestep_spacing, total, count, config.steps_offset, true);
  const bound = boundOf(config);
  const learned = variance === 'learned' || variance === 'learned_range';
  const drafts = timesteps.map((t, i): StepDraft => {
    const previous = custom ? (custom[i + 1] ?? -1) : t - Math.floor(total / count);
    const alphaBar = finiteAlphaBar(alphasCumprod[t]!, bound);
    const alphaBarPrevious = previous >= 0 ? alphasCumprod[previous]! : 1;
    // Rounded as the library rounds: between neighbouring time steps 1 - ratio is as small as 1e-4, of which f32 holds only four digits.
    const alpha = f32(alphaBar / alphaBarPrevious);
    const beta = f32(1 - alpha);
    const betaTilde = Math.max(((1 - alphaBarPrevious) / (1 - alphaBar)) * beta, 1e-20);
    const { x0: predX0 } = predict(prediction_type, alphaBar);
    const mean = combine(
      [(Math.sqrt(alphaBarPrevious) * beta) / (1 - alphaBar), bounded(bound, predX0)],
      [(Math.sqrt(alpha) * (1 - alphaBarPrevious)) / (1 - alphaBar), SAMPLE],
    );
    // diffusers takes the root of log(beta) for fixed_large_log, which is NaN; what the name means is the same variance as fixed_large.
    const std = learned ? 1 : Math.sqrt(variance?.startsWith('fixed_large') ? beta : betaTilde);
    const drawsNoise = t > 0;
    return {
      timestep: t,
      predX0,
      next: combine([1, mean], [drawsNoise ? std : 0, NOISE]),
      drawsNoise,
      // log variance = f log beta + (1 - f) log betaTilde, f = (v + 1) / 2; half of it is the log of the standard deviation.
      ...(variance === 'learned_range' && { logStd: [(Math.log(beta) + Math.log(betaTilde)) / 4, (Math.log(beta) - Math.log(betaTilde)) / 4] as const }),
    };
  });
  return finishProgram(config._class_name, drafts, { bound, varianceHalf: learned ? variance : 'unused', begin: options.begin });
}
