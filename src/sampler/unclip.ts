import { check } from '../engine/errors';
import { boundOf, predict } from './prediction';
import { bounded, combine, finishProgram, NOISE, SAMPLE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';
import { roundHalfEven } from './schedules';

const f32 = Math.fround;

/**
 * DDPM as DALL·E 2 samples it (diffusers' UnCLIPScheduler): over time steps that include both ends of the schedule, each step going to the next of them.
 * `learned_range` reads the model's variance; `fixed_small_log` is the posterior's variance. No noise is drawn at t = 0.
 */
export function unclip(config: SchedulerConfig, { betas, alphasCumprod }: NoiseTables, { numInferenceSteps: count, begin }: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { num_train_timesteps: total, variance_type: variance, prediction_type } = config;
  check(count >= 2 && count <= total, 'config', () => `numInferenceSteps is ${count}; allowed: 2 (the first and the last time step) to num_train_timesteps (${total})`);
  const ratio = (total - 1) / (count - 1);
  const timesteps = Array.from({ length: count }, (_, i) => roundHalfEven((count - 1 - i) * ratio));
  const bound = boundOf(config);
  const learned = variance === 'learned_range';
  const drafts = timesteps.map((t, i): StepDraft => {
    const previous = timesteps[i + 1] ?? t - 1;
    const alphaBar = alphasCumprod[t]!;
    const alphaBarPrevious = previous >= 0 ? alphasCumprod[previous]! : 1;
    // From the table between neighbours: 1 − ratio of two float32 numbers near 1 has few digits left, the library's are those of the table.
    const beta = previous === t - 1 ? betas[t]! : f32(1 - f32(alphaBar / alphaBarPrevious));
    const betaTilde = Math.max(((1 - alphaBarPrevious) / (1 - alphaBar)) * beta, 1e-20);
    const { x0: predX0 } = predict(prediction_type, alphaBar);
    const drawsNoise = t > 0;
    return {
      timestep: t,
      predX0,
      next: combine(
        [(Math.sqrt(alphaBarPrevious) * beta) / (1 - alphaBar), bounded(bound, predX0)],
        [(Math.sqrt(1 - beta) * (1 - alphaBarPrevious)) / (1 - alphaBar), SAMPLE],
        [drawsNoise ? (learned ? 1 : Math.sqrt(betaTilde)) : 0, NOISE],
      ),
      drawsNoise,
      ...(learned && { logStd: [(Math.log(beta) + Math.log(betaTilde)) / 4, (Math.log(beta) - Math.log(betaTilde)) / 4] as const }),
    };
  });
  return finishProgram(config._class_name, drafts, { bound, varianceHalf: learned ? variance : 'unused', begin });
}
