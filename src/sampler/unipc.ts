import { logSnrTables, solverSchedule, solverValue } from './dpmpp';
import { boundOf } from './prediction';
import { combine, finishProgram, SAMPLE, slot, type Bound, type Linear, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SchedulerConfig } from './scheduler_config';

const f32 = Math.fround;

/** Slots: the (corrected) sample of the step before, then a ring of model values. */
const LAST = 0;

/**
 * UniPC (Zhao et al. 2023): a multi-step predictor, and a corrector that redoes the step before with the model value just computed; no extra
 * evaluation. Orders up to 5; the predictor's weights at order 2 and the corrector's at order 1 are the constant 1/2.
 */
export function unipc(config: SchedulerConfig, tables: NoiseTables, { numInferenceSteps, begin = 0 }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { solver_order: maxOrder, predict_x0: dataPrediction, solver_type, lower_order_final } = config;
  const { alpha, sigma, lambda } = logSnrTables(tables);
  const { timesteps, sigmas } = solverSchedule(config, tables, { alpha, sigma, lambda }, numInferenceSteps);
  // diffusers' epsilon form leaves thresholding out.
  const bound: Bound = dataPrediction ? boundOf(config) : { kind: 'none' };
  const ring = (i: number): Linear => slot(1 + (i % maxOrder));

  /**
   * UniPC algorithms 5 to 8: from step `i`'s time step s0 to t. `m` are the model values at s0 and before it, newest first, as many as the order;
   * `correction` is the value at t, for the corrector.
   */
  const update = (i: number, t: number, start: Linear, m: readonly Linear[], correction?: Linear): Linear => {
    const order = m.length;
    const s0 = timesteps[i]!;
    if (t === s0) return start; // the limit of the weights, as in DPM-Solver
    const h = f32(lambda[t]! - lambda[s0]!);
    const hh = dataPrediction ? -h : h;
    const phi1 = f32(Math.expm1(hh));
    const scale = solver_type === 'bh1' ? hh : phi1;
    const [m0] = m as [Linear];
    const ratios = m.slice(1).map((_, k) => f32(f32(lambda[timesteps[i - 1 - k]!]! - lambda[s0]!) / h));
    const differences = m.slice(1).map((mk, k) => combine([1 / ratios[k]!, mk], [-1 / ratios[k]!, m0]));
    if (correction) {
      ratios.push(1);
      differences.push(combine([1, correction], [-1, m0]));
    }
    const weights = order === (correction ? 1 : 2) ? [0.5] : solve(ratios.map((_, power) => ratios.map((r) => r ** power)), phiVector(hh, phi1, scale, ratios.length));
    const outer = dataPrediction ? alpha[t]! : sigma[t]!;
    const keep = dataPrediction ? sigma[t]! / sigma[s0]! : alpha[t]! / alpha[s0]!;
    return combine([keep, start], [-outer * phi1, m0], ...differences.map((d, k) => [-outer * scale * weights[k]!, d] as const));
  };

  const history = (i: number, order: number): Linear[] => Array.from({ length: order }, (_, k) => ring(i - k));
  let order = 0;
  const drafts = timesteps.map((timestep, i): StepDraft => {
    const { predX0, value } = solverValue(config, bound, alpha[timestep]!, sigma[timestep]!, dataPrediction);
    const corrects = i > begin && !config.disable_corrector.includes(i - 1);
    const sample = corrects ? update(i - 1, timestep, slot(LAST), history(i - 1, order), value) : SAMPLE;
    order = Math.min(maxOrder, Math.max(1, i - begin + 1), lower_order_final ? timesteps.length - i : maxOrder);
    const toImage = config.final_sigmas_type === 'zero' && i === timesteps.length - 1;
    const next = toImage ? value : update(i, timesteps[i + 1] ?? 0, sample, [value, ...history(i - 1, order - 1)]);
    return { timestep, predX0, next, store: [{ slot: LAST, value: sample }, { slot: 1 + (i % maxOrder), value }] };
  });
  return finishProgram(config._class_name, drafts, { sigmas, bound, begin });
}

/**
 * b_k = k! h phi_{k+1}(h) / B(h), k = 1...: UniPC eq. 10, by the recurrence phi_{k+1} = (phi_k - 1/k!) / h. In float32, as the library: each
 * subtraction loses digits for small h, and its results are compared with.
 */
function phiVector(hh: number, phi1: number, scale: number, length: number): number[] {
  let phi = f32(f32(phi1 / hh) - 1);
  let factorial = 1;
  return Array.from({ length }, (_, k) => {
    const b = f32(f32(phi * factorial) / scale);
    factorial *= k + 2;
    phi = f32(f32(phi / hh) - f32(1 / factorial));
    return b;
  });
}

/** Gaussian elimination with partial pivoting. */
function solve(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const rows = matrix.map((row, i) => [...row, right[i]!]);
  const n = rows.length;
  for (let c = 0; c < n; c++) {
    const pivot = rows.slice(c).reduce((best, row, k) => (Math.abs(row[c]!) > Math.abs(rows[best]![c]!) ? c + k : best), c);
    [rows[c], rows[pivot]] = [rows[pivot]!, rows[c]!];
    for (let r = 0; r < n; r++) {
      if (r === c) continue;
      const factor = rows[r]![c]! / rows[c]![c]!;
      for (let k = c; k <= n; k++) rows[r]![k]! -= factor * rows[c]![k]!;
    }
  }
  return rows.map((row, i) => row[n]! / row[i]!);
}
