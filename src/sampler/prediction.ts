/** What a model predicts, turned into x0 and epsilon: the one place that knows prediction types. */
import { combine, OUTPUT, SAMPLE, type Bound, type Linear } from './program';

export type PredictionType = 'epsilon' | 'sample' | 'v_prediction';

export interface Prediction {
  readonly x0: Linear;
  readonly epsilon: Linear;
}

/** For x_t = sqrt(alphaBar) x0 + sqrt(1 - alphaBar) epsilon (variance preserving). v = sqrt(alphaBar) epsilon - sqrt(1 - alphaBar) x0. */
export function predict(type: PredictionType, alphaBar: number): Prediction {
  return predictScaled(type, Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar));
}

/**
 * alphas_cumprod at a time step, but for one of pure noise (zero SNR): x0 from epsilon is infinite there, and where something bounds it, as good as
 * infinite does, with the sign that says where it is cut off.
 */
export const finiteAlphaBar = (alphaBar: number, bound: Bound): number => (alphaBar === 0 && bound.kind !== 'none' ? 2 ** -100 : alphaBar);

/** The same with the signal's and the noise's factor given. */
export function predictScaled(type: PredictionType, signal: number, noise: number): Prediction {
  switch (type) {
    case 'epsilon':
      return { x0: combine([1 / signal, SAMPLE], [-noise / signal, OUTPUT]), epsilon: OUTPUT };
    case 'sample':
      return { x0: OUTPUT, epsilon: epsilonFrom(OUTPUT, signal, noise) };
    case 'v_prediction':
      return { x0: combine([signal, SAMPLE], [-noise, OUTPUT]), epsilon: combine([signal, OUTPUT], [noise, SAMPLE]) };
  }
}

/** epsilon that goes with a given x0. */
export const epsilonFrom = (x0: Linear, signal: number, noise: number): Linear => combine([1 / noise, SAMPLE], [-signal / noise, x0]);

/** x0 for x = x0 + sigma epsilon (variance exploding), where the model sees x / sqrt(sigma^2 + 1). `x` is the noisy sample. */
export function predictX0FromSigma(type: PredictionType, sigma: number, x: Linear = SAMPLE, epsilonSigma = sigma): Linear {
  switch (type) {
    case 'epsilon':
      return combine([1, x], [-epsilonSigma, OUTPUT]);
    case 'sample':
      return OUTPUT;
    case 'v_prediction':
      return combine([1 / (sigma ** 2 + 1), x], [-sigma / Math.sqrt(sigma ** 2 + 1), OUTPUT]);
  }
}

interface BoundKeys {
  clip_sample: boolean;
  clip_sample_range: number;
  thresholding: boolean;
  dynamic_thresholding_ratio: number;
  sample_max_value: number;
}

/** The bound that a configuration asks for; thresholding takes the place of clipping. */
export function boundOf(config: BoundKeys): Bound {
  if (config.thresholding) return { kind: 'quantile', ratio: config.dynamic_thresholding_ratio, maxValue: config.sample_max_value };
  return config.clip_sample ? { kind: 'clip', range: config.clip_sample_range } : { kind: 'none' };
}
