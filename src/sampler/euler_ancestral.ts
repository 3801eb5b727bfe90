import { inputScale, sigmaSchedule } from './euler';
import { predictX0FromSigma } from './prediction';
import { combine, finishProgram, NOISE, SAMPLE, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SchedulerConfig } from './scheduler_config';

/** Euler steps down past the next sigma, then fresh noise up to it (k-diffusion's sample_euler_ancestral); a draw is taken in every step. */
export function eulerAncestral(config: SchedulerConfig, tables: NoiseTables, { numInferenceSteps, begin }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { timesteps, sigmas, initNoiseSigma } = sigmaSchedule(config, tables, numInferenceSteps);
  const drafts = timesteps.map((timestep, i): StepDraft => {
    const [from, to] = [sigmas[i]!, sigmas[i + 1]!];
    const up = Math.sqrt((to ** 2 * (from ** 2 - to ** 2)) / from ** 2);
    const down = Math.sqrt(to ** 2 - up ** 2);
    const predX0 = predictX0FromSigma(config.prediction_type, from);
    // x + (x - x0) / from * (down - from)
    return { timestep, inputScale: inputScale(from), predX0, next: combine([down / from, SAMPLE], [1 - down / from, predX0], [up, NOISE]), drawsNoise: true };
  });
  return finishProgram(config._class_name, drafts, { initNoiseSigma, sigmas, begin });
}
