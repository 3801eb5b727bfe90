import { predictX0FromSigma } from './prediction';
import { combine, finishProgram, NOISE, SAMPLE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';
import { exponentialSigmas, interpolate, karrasSigmas, linspaceF32, sigmasOf, sigmaToTimestep, spacedTimesteps } from './schedules';

export interface SigmaSchedule {
  readonly timesteps: readonly number[];
  /** float32 values, one more than time steps: the last is where the last step ends, 0 but for final_sigmas_type "sigma_min". */
  readonly sigmas: Float32Array;
  readonly initNoiseSigma: number;
}

/** Time steps and sigmas of the samplers that work in the variance-exploding view (Euler, Euler ancestral, Heun, LMS). */
export function sigmaSchedule(config: SchedulerConfig, { alphasCumprod }: NoiseTables, count: number): SigmaSchedule {
  const table = sigmasOf(alphasCumprod);
  let timesteps = spacedTimesteps(config.timestep_spacing, config.num_train_timesteps, count, config.steps_offset, false);
  let sigmas: ArrayLike<number> & Iterable<number> = timesteps.map((t) => interpolate(table, t));
  // One sigma more than there are steps, so that the last step ends at the smallest sigma and not at 0: as diffusers has it.
  if (config.interpolation_type === 'log_linear') sigmas = linspaceF32(Math.log(table.at(-1)!), Math.log(table[0]!), count + 1).map(Math.exp);
  if (config.use_karras_sigmas || config.use_exponential_sigmas) {
    const spaced = config.use_karras_sigmas ? karrasSigmas : exponentialSigmas;
    sigmas = spaced(sigmas[0]!, sigmas[sigmas.length - 1]!, count);
    const logs = table.map(Math.log);
    timesteps = Array.from(sigmas, (sigma) => sigmaToTimestep(sigma, logs));
  }
  const all = Float32Array.from([...sigmas, config.final_sigmas_type === 'zero' ? 0 : table[0]!]);
  const max = all.reduce((a, b) => Math.max(a, b));
  return { timesteps, sigmas: all, initNoiseSigma: config.timestep_spacing === 'leading' ? Math.fround(Math.sqrt(max ** 2 + 1)) : max };
}

/** Factor that brings a sample of noise level sigma to the variance that the model was trained on. */
export const inputScale = (sigma: number): number => 1 / Math.sqrt(sigma ** 2 + 1);

/**
 * Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 with first-order steps). With s_churn > 0, noise is added before a step
 * where s_tmin <= sigma <= s_tmax; a draw is taken in every step in any case.
 */
export function euler(config: SchedulerConfig, tables: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { begin, s_churn: churn = 0, s_tmin = 0, s_tmax = Infinity, s_noise = 1 } = options;
  const { timesteps, sigmas, initNoiseSigma } = sigmaSchedule(config, tables, options.numInferenceSteps);
  const drafts = timesteps.map((timestep, i): StepDraft => {
    const sigma = sigmas[i]!;
    const gamma = s_tmin <= sigma && sigma <= s_tmax ? Math.min(churn / (sigmas.length - 1), Math.SQRT2 - 1) : 0;
    const sigmaHat = sigma * (gamma + 1);
    const x = combine([1, SAMPLE], [gamma > 0 ? s_noise * Math.sqrt(sigmaHat ** 2 - sigma ** 2) : 0, NOISE]);
    const predX0 = predictX0FromSigma(config.prediction_type, sigma, x, sigmaHat);
    const ratio = (sigmas[i + 1]! - sigmaHat) / sigmaHat;
    return { timestep, inputScale: inputScale(sigma), predX0, next: combine([1 + ratio, x], [-ratio, predX0]), drawsNoise: true };
  });
  return finishProgram(config._class_name, drafts, { initNoiseSigma, sigmas, begin });
}
