import { check } from '../engine/errors';
import { inputScale, sigmaSchedule } from './euler';
import { predictX0FromSigma } from './prediction';
import { combine, finishProgram, MAX_SLOTS, SAMPLE, slot, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SamplerOptions, SchedulerConfig } from './scheduler_config';

/**
 * Linear multi-step method on the ODE in sigma (Adams-Bashforth over uneven steps, as in k-diffusion): the polynomial through the last `order`
 * slopes is integrated exactly.
 */
export function lms(config: SchedulerConfig, tables: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }): SamplerProgram {
  const { order = 4, begin = 0 } = options;
  check(Number.isInteger(order) && order >= 1 && order <= MAX_SLOTS + 1, 'config', () => `order is ${order}; allowed: an integer from 1 to ${MAX_SLOTS + 1}`);
  const { timesteps, sigmas, initNoiseSigma } = sigmaSchedule(config, tables, options.numInferenceSteps);
  const ring = (i: number): number => i % (order - 1);
  const drafts = timesteps.map((timestep, i): StepDraft => {
    const sigma = sigmas[i]!;
    const predX0 = predictX0FromSigma(config.prediction_type, sigma);
    const slope = combine([1 / sigma, SAMPLE], [-1 / sigma, predX0]);
    const nodes = Array.from({ length: Math.max(1, Math.min(i - begin + 1, order)) }, (_, back) => sigmas[i - back]!);
    const terms = nodes.map((_, k) => [integrateLagrange(nodes, k, sigma, sigmas[i + 1]!), k === 0 ? slope : slot(ring(i - k))] as const);
    return {
      timestep,
      inputScale: inputScale(sigma),
      predX0,
      next: combine([1, SAMPLE], ...terms),
      store: order > 1 ? [{ slot: ring(i), value: slope }] : [],
    };
  });
  return finishProgram(config._class_name, drafts, { initNoiseSigma, sigmas, begin });
}

/** Integral from `from` to `to` of the polynomial that is 1 at nodes[k] and 0 at the other nodes. */
function integrateLagrange(nodes: readonly number[], k: number, from: number, to: number): number {
  // Monomial coefficients in (tau - from), lowest first: the integral then starts at 0.
  let polynomial = [1];
  nodes.forEach((node, j) => {
    if (j === k) return;
    const scale = 1 / (nodes[k]! - node);
    const shifted = [0, ...polynomial];
    polynomial = shifted.map((above, power) => scale * (above - (node - from) * (polynomial[power] ?? 0)));
  });
  return polynomial.reduce((sum, coefficient, power) => sum + (coefficient * (to - from) ** (power + 1)) / (power + 1), 0);
}
