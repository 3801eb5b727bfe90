import { inputScale, sigmaSchedule } from './euler';
import { boundOf, predictX0FromSigma } from './prediction';
import { bounded, combine, finishProgram, SAMPLE, slot, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SchedulerConfig } from './scheduler_config';

const START = 0;
const SLOPE = 1;

/**
 * Heun's second-order method (Karras et al. 2022, algorithm 1): an Euler step, then the step again with the mean of the slopes at both ends. Two model
 * evaluations per step but the last, whose end has sigma 0.
 */
export function heun(config: SchedulerConfig, tables: NoiseTables, { numInferenceSteps, begin = 0 }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { timesteps, sigmas, initNoiseSigma } = sigmaSchedule(config, tables, numInferenceSteps);
  const bound = boundOf(config);
  const drafts = timesteps.flatMap((timestep, i): StepDraft[] => {
    const at = (sigma: number, t: number) => {
      const predX0 = predictX0FromSigma(config.prediction_type, sigma);
      const slope = combine([1 / sigma, SAMPLE], [-1 / sigma, bounded(bound, predX0)]);
      return { timestep: t, inputScale: inputScale(sigma), predX0, slope };
    };
    const [sigma, to] = [sigmas[i]!, sigmas[i + 1]!];
    const { slope, ...first } = at(sigma, timestep);
    const step: StepDraft = { ...first, next: combine([1, SAMPLE], [to - sigma, slope]) };
    if (i === timesteps.length - 1) return [step];
    const { slope: endSlope, ...second } = at(to, timesteps[i + 1]!);
    return [
      { ...step, store: [{ slot: START, value: SAMPLE }, { slot: SLOPE, value: slope }] },
      { ...second, next: combine([1, slot(START)], [(to - sigma) / 2, slot(SLOPE)], [(to - sigma) / 2, endSlope]) },
    ];
  });
  const doubled = Array.from(sigmas).flatMap((sigma, i) => (i === 0 || i === sigmas.length - 1 ? [sigma] : [sigma, sigma]));
  return finishProgram(config._class_name, drafts, { initNoiseSigma, sigmas: doubled, bound, begin });
}
