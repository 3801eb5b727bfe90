import { boundOf, epsilonFrom, predictScaled } from './prediction';
import { bounded, combine, finishProgram, NOISE, SAMPLE, slot, type Bound, type Linear, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SchedulerConfig } from './scheduler_config';
import { karrasSigmas, roundHalfEven, sigmasOf, sigmaToTimestep, solverTimesteps } from './schedules';

const f32 = Math.fround;

/** The process in half log-SNR lambda = log(alpha / sigma), float32 values, index = time step. */
export interface LogSnrTables {
  readonly alpha: Float32Array;
  readonly sigma: Float32Array;
  readonly lambda: Float32Array;
}

export function logSnrTables({ alphasCumprod }: NoiseTables): LogSnrTables {
  const alpha = alphasCumprod.map(Math.sqrt);
  const sigma = alphasCumprod.map((a) => Math.sqrt(1 - a));
  return { alpha, sigma, lambda: alpha.map((a, t) => f32(Math.log(a)) - f32(Math.log(sigma[t]!))) };
}

/** Integer time steps of the solvers in lambda, and diffusers' `sigmas`: the whole table, or the Karras sigmas, ascending. */
export function solverSchedule(config: SchedulerConfig, { alphasCumprod }: NoiseTables, { lambda }: LogSnrTables, count: number): { timesteps: number[]; sigmas: ArrayLike<number> } {
  const total = config.num_train_timesteps;
  const table = sigmasOf(alphasCumprod);
  if (config.use_karras_sigmas) {
    const sigmas = karrasSigmas(table[0]!, table[total - 1]!, count);
    const logs = table.map(Math.log);
    const rounded = Array.from(sigmas, (sigma) => roundHalfEven(sigmaToTimestep(sigma, logs)));
    return { timesteps: [...new Set(rounded.reverse())], sigmas };
  }
  const clipped = lambda.reduce((below, l) => below + (l < f32(config.lambda_min_clipped) ? 1 : 0), 0);
  return { timesteps: solverTimesteps(config.timestep_spacing, total, count, config.steps_offset, total - clipped), sigmas: table };
}

/** What these solvers keep of an evaluation: the bounded x0 (data prediction), or epsilon. */
export function solverValue(config: SchedulerConfig, bound: Bound, alpha: number, sigma: number, dataPrediction: boolean): { predX0: Linear; value: Linear } {
  const { x0, epsilon } = predictScaled(config.prediction_type, alpha, sigma);
  if (dataPrediction) return { predX0: x0, value: bounded(bound, x0) };
  return { predX0: x0, value: bound.kind === 'none' ? epsilon : epsilonFrom(bounded(bound, x0), alpha, sigma) };
}

/**
 * Weights of the exponential integrator over one step of h in lambda, from s to t: x_t = sample x_s + d0 D0 + (slope of the order) D1 + d2 D2 + noise z.
 * `midpoint` and `heun` are the two choices for D1 at second order; third order takes `heun` and `d2`.
 */
function integratorWeights(algorithm: SchedulerConfig['algorithm_type'], { alpha, sigma, lambda }: LogSnrTables, s: number, t: number) {
  const [alphaT, sigmaT] = [alpha[t]!, sigma[t]!];
  const h = lambda[t]! - lambda[s]!;
  switch (algorithm) {
    case 'dpmsolver++': {
      const e = Math.expm1(-h);
      return { sample: sigmaT / sigma[s]!, d0: -alphaT * e, midpoint: -0.5 * alphaT * e, heun: alphaT * (e / h + 1), d2: -alphaT * ((e + h) / h ** 2 - 0.5), noise: 0 };
    }
    case 'dpmsolver': {
      const e = Math.expm1(h);
      return { sample: alphaT / alpha[s]!, d0: -sigmaT * e, midpoint: -0.5 * sigmaT * e, heun: -sigmaT * (e / h - 1), d2: -sigmaT * ((e - h) / h ** 2 - 0.5), noise: 0 };
    }
    case 'sde-dpmsolver++': {
      const e = -Math.expm1(-2 * h);
      return { sample: (sigmaT / sigma[s]!) * Math.exp(-h), d0: alphaT * e, midpoint: 0.5 * alphaT * e, heun: alphaT * (e / (-2 * h) + 1), d2: alphaT * ((e - 2 * h) / (2 * h) ** 2 - 0.5), noise: sigmaT * Math.sqrt(e) };
    }
    case 'sde-dpmsolver': {
      const e = Math.expm1(h);
      return { sample: alphaT / alpha[s]!, d0: -2 * sigmaT * e, midpoint: -sigmaT * e, heun: -2 * sigmaT * (e / h - 1), d2: 0, noise: sigmaT * Math.sqrt(Math.expm1(2 * h)) };
    }
  }
}

/**
 * DPM-Solver and DPM-Solver++ (Lu et al. 2022), multi-step, orders 1 to 3, and their SDE versions (of DPM-Solver: orders 1 and 2). Orders are built up over the first
 * steps; with `lower_order_final` and fewer than 15 steps they go down again at the end. A last step to noise 0 gives the predicted x0.
 */
export function dpmSolverMultistep(config: SchedulerConfig, tables: NoiseTables, { numInferenceSteps, begin = 0 }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { algorithm_type: algorithm, solver_order: order, solver_type } = config;
  const process = logSnrTables(tables);
  const { lambda } = process;
  const { timesteps, sigmas } = solverSchedule(config, tables, process, numInferenceSteps);
  const bound = boundOf(config);
  const count = timesteps.length;
  const stochastic = algorithm.startsWith('sde');
  const ring = (i: number): number => i % (order - 1);
  const drafts = timesteps.map((s0, i): StepDraft => {
    const t = timesteps[i + 1] ?? 0;
    const { predX0, value: m0 } = solverValue(config, bound, process.alpha[s0]!, process.sigma[s0]!, algorithm.endsWith('++'));
    const store = order > 1 ? [{ slot: ring(i), value: m0 }] : [];
    const draft = { timestep: s0, predX0, store, drawsNoise: stochastic };
    const last = i === count - 1;
    if (last && config.final_sigmas_type === 'zero') return { ...draft, next: m0 };
    // Already there: Karras and trailing spacings may end at t = 0. The weights' limit is the identity.
    if (t === s0) return { ...draft, next: SAMPLE };
    const w = integratorWeights(algorithm, process, s0, t);
    const left = last && config.euler_at_final ? 1 : config.lower_order_final && count < 15 ? count - i : order;
    const h = lambda[t]! - lambda[s0]!;
    const terms: [number, Linear][] = [[w.sample, SAMPLE], [w.d0, m0], [w.noise, NOISE]];
    const steps = Math.min(order, i - begin + 1, left);
    if (steps >= 2) {
      const m1 = slot(ring(i - 1));
      const r0 = (lambda[s0]! - lambda[timesteps[i - 1]!]!) / h;
      const slope0 = combine([1 / r0, m0], [-1 / r0, m1]);
      if (steps === 2) terms.push([solver_type === 'heun' ? w.heun : w.midpoint, slope0]);
      else {
        const r1 = (lambda[timesteps[i - 1]!]! - lambda[timesteps[i - 2]!]!) / h;
        const slope1 = combine([1 / r1, m1], [-1 / r1, slot(ring(i - 2))]);
        terms.push([w.heun, combine([1 + r0 / (r0 + r1), slope0], [-r0 / (r0 + r1), slope1])]);
        terms.push([w.d2, combine([1 / (r0 + r1), slope0], [-1 / (r0 + r1), slope1])]);
      }
    }
    return { ...draft, next: combine(...terms) };
  });
  return finishProgram(config._class_name, drafts, { sigmas, bound, begin });
}

/** The order of each evaluation: every group 1, 2, ..., order makes one single-step update; what is left over is done at lower order. */
function singlestepOrders(count: number, order: number, lowerOrderFinal: boolean): number[] {
  const group = Array.from({ length: order }, (_, k) => k + 1);
  const whole = Math.floor(count / order);
  const rest = group.slice(0, count % order);
  // Third order over a multiple of three: the last group becomes 1, 2 and 1.
  if (lowerOrderFinal && order === 3 && rest.length === 0) return [...Array.from({ length: whole - 1 }, () => group).flat(), 1, 2, 1];
  return [...Array.from({ length: whole }, () => group).flat(), ...rest];
}

/** DPM-Solver and DPM-Solver++ in their single-step form: evaluations within a group start again from the group's first sample. */
export function dpmSolverSinglestep(config: SchedulerConfig, tables: NoiseTables, { numInferenceSteps, begin = 0 }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { algorithm_type: algorithm, solver_order: maxOrder, solver_type } = config;
  const process = logSnrTables(tables);
  const { lambda } = process;
  const { timesteps, sigmas } = solverSchedule(config, tables, process, numInferenceSteps);
  // diffusers' epsilon form leaves thresholding out.
  const bound: Bound = algorithm === 'dpmsolver++' ? boundOf(config) : { kind: 'none' };
  const orders = singlestepOrders(timesteps.length, maxOrder, config.lower_order_final);
  const START = 0;
  const ring = (i: number): number => 1 + (i % 2);
  const drafts = timesteps.map((s0, i): StepDraft => {
    const t = timesteps[i + 1] ?? 0;
    const { predX0, value: m0 } = solverValue(config, bound, process.alpha[s0]!, process.sigma[s0]!, algorithm === 'dpmsolver++');
    // A run that begins within a group has nothing to go on from but its own samples.
    const order = Math.max(1, Math.min(orders[i]!, i - begin + 1));
    const first = timesteps[i - order + 1]!;
    const store = maxOrder > 1 ? [{ slot: ring(i), value: m0 }] : [];
    if (order === 1 && maxOrder > 1) store.push({ slot: START, value: SAMPLE });
    const draft = { timestep: s0, predX0, store };
    if (i === timesteps.length - 1 && config.final_sigmas_type === 'zero') return { ...draft, next: m0 };
    if (t === s0 && order === 1) return { ...draft, next: SAMPLE };
    const w = integratorWeights(algorithm, process, first, t);
    const h = lambda[t]! - lambda[first]!;
    const r0 = (lambda[s0]! - lambda[first]!) / h;
    if (order === 1) return { ...draft, next: combine([w.sample, SAMPLE], [w.d0, m0]) };
    const m1 = slot(ring(i - 1));
    const base: [number, Linear][] = [[w.sample, slot(START)]];
    if (order === 2) {
      const slope = combine([1 / r0, m0], [-1 / r0, m1]);
      return { ...draft, next: combine(...base, [w.d0, m1], [solver_type === 'heun' ? w.heun : w.midpoint, slope]) };
    }
    const m2 = slot(ring(i - 2));
    const r1 = (lambda[timesteps[i - 1]!]! - lambda[first]!) / h;
    const near = combine([1 / r1, m1], [-1 / r1, m2]);
    const far = combine([1 / r0, m0], [-1 / r0, m2]);
    if (solver_type === 'midpoint') return { ...draft, next: combine(...base, [w.d0, m2], [w.heun, far]) };
    const slope = combine([r0 / (r0 - r1), near], [-r1 / (r0 - r1), far]);
    const curvature = combine([2 / (r0 - r1), far], [-2 / (r0 - r1), near]);
    return { ...draft, next: combine(...base, [w.d0, m2], [w.heun, slope], [w.d2, curvature]) };
  });
  return finishProgram(config._class_name, drafts, { sigmas, bound, begin });
}
