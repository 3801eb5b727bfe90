import { describe, expect, test } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { DiffusionProcess } from '../../src/sampler/diffusion_process';
import { applyBound, COLUMNS, MAX_SLOTS, packProgram, runProgramReference, STEP_STRIDE, type SamplerProgram } from '../../src/sampler/program';
import { convertSchedulerConfig, createSampler, noiseTables, parseSchedulerConfig, schedulerClasses, type SamplerOptions } from '../../src/sampler/scheduler_config';
import { alphasCumprod, cosineBetas, makeBetas, rescaleZeroTerminalSnr, spacedTimesteps, trailingTimesteps } from '../../src/sampler/schedules';
import { goldenJson, loadGolden } from '../helpers/golden';

interface Case {
  class: string;
  config: Record<string, unknown>;
  num_inference_steps: number;
  step_kwargs: SamplerOptions;
  calls_of_step: number;
  middle_index: number;
  init_noise_sigma: number;
  noise_draws: number;
  max_abs: { first: number; middle: number; last: number };
}

const { _about, ...cases } = goldenJson<Record<string, Case> & { _about: string }>('schedulers', 'cases.json');
const io = loadGolden('schedulers', 'io.safetensors');
const tensor = (name: string) => io.get(name)!;
const maxAbsDifference = (a: ArrayLike<number>, b: ArrayLike<number>): number => Array.from(a).reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i]!)), a.length === b.length ? 0 : Infinity);
/** The denoiser of cases.json. */
const toyModel = (input: Float64Array, t: number): Float64Array => input.map((value) => (value * (t + 1)) / (t + 2));

/** A reproducible, roughly normal sequence. */
function draws(seed: number, length: number): Float64Array {
  let state = seed;
  const uniform = () => (state = (state * 16807) % 2147483647) / 2147483647;
  return Float64Array.from({ length }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

const codeOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    if (error instanceof BruitError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return 'no error';
};

describe('goldens of diffusers 0.21.4', () => {
  test.each(Object.entries(cases))('%s', (name, c) => {
    const program = createSampler({ _class_name: c.class, ...c.config }, { numInferenceSteps: c.num_inference_steps, ...c.step_kwargs });
    expect(program.steps.length).toBe(c.calls_of_step);
    expect(program.noiseDraws).toBe(c.noise_draws);
    expect(Math.abs(program.initNoiseSigma / c.init_noise_sigma - 1)).toBeLessThan(1e-6);
    for (const [kind, values] of [['timesteps', program.timesteps], ['sigmas', program.sigmas]] as const) {
      const golden = io.get(`${name}.${kind}`);
      expect(golden === undefined).toBe(values === null);
      if (!golden || !values) continue;
      expect(values.length).toBe(golden.data.length);
      values.forEach((value, i) => expect(Math.abs(value - golden.data[i]!)).toBeLessThanOrEqual(1e-6 * Math.abs(golden.data[i]!)));
    }
    const { data, shape } = tensor('sample');
    const size = data.length;
    const noise = io.get(`${name}.noise`)?.data;
    const noises = Array.from({ length: c.noise_draws }, (_, i) => noise!.subarray(i * size, (i + 1) * size));
    const visited = new Map<number, Float64Array>();
    const last = runProgramReference(program, data.map((v) => v * program.initNoiseSigma), shape[0]!, toyModel, noises, ({ index, sample }) => visited.set(index, sample));
    const points = { first: visited.get(0)!, middle: visited.get(c.middle_index)!, last };
    for (const [point, value] of Object.entries(points) as [keyof Case['max_abs'], Float64Array][])
      expect(maxAbsDifference(value, tensor(`${name}.${point}`).data), point).toBeLessThanOrEqual(1e-5 * c.max_abs[point]);
  });
});

describe('noise process', () => {
  const process = new DiffusionProcess(makeBetas('linear', 50, 1e-4, 0.02));

  test('q(x_t | x_0) is the composition of q(x_t | x_{t-1})', () => {
    let [signal, variance] = [1, 0];
    for (let t = 0; t < 50; t++) {
      const step = process.qStep(t);
      signal *= step.signal;
      variance = step.signal ** 2 * variance + step.noise ** 2;
      expect(process.qSample(t).signal).toBeCloseTo(signal, 12);
      expect(process.qSample(t).noise ** 2).toBeCloseTo(variance, 12);
    }
  });

  test('the posterior is what Bayes gives for q(x_t | x_s) q(x_s | x_0), neighbours or not', () => {
    for (const [t, s] of [[1, 0], [30, 29], [49, 20]] as const) {
      const [step, prior] = [process.qStep(t, s), process.qSample(s)];
      const precision = step.signal ** 2 / step.noise ** 2 + 1 / prior.noise ** 2;
      const posterior = process.posterior(t, s);
      expect(posterior.variance).toBeCloseTo(1 / precision, 12);
      expect(posterior.x0).toBeCloseTo(prior.signal / prior.noise ** 2 / precision, 12);
      expect(posterior.xt).toBeCloseTo(step.signal / step.noise ** 2 / precision, 12);
    }
  });

  test('predictions and targets are inverse to each other; SNR', () => {
    const [x0, epsilon] = [0.7, -1.3];
    const { signal, noise } = process.qSample(17);
    for (const type of ['epsilon', 'sample', 'v_prediction'] as const) {
      const target = process.target(type, 17);
      const back = process.predictX0(type, 17);
      expect(back.xt * (signal * x0 + noise * epsilon) + back.output * (target.x0 * x0 + target.epsilon * epsilon)).toBeCloseTo(x0, 12);
    }
    expect(process.snr(17)).toBeCloseTo((signal / noise) ** 2, 10);
  });

  test('log-variance bounds of learned variance', () => {
    expect(process.logVarianceBounds(0)[0]).toBe(process.logVarianceBounds(1)[0]);
    for (let t = 1; t < 50; t++) {
      const [min, max] = process.logVarianceBounds(t);
      expect(min).toBeCloseTo(Math.log(process.posterior(t).variance), 12);
      expect(max).toBeCloseTo(Math.log(process.betas[t]!), 12);
      expect(min).toBeLessThan(max);
    }
    expect(() => process.alphaBar(50)).toThrow(BruitError);
  });

  test('schedules', () => {
    const linear = makeBetas('linear', 1000, 1e-4, 0.02);
    linear.forEach((beta, t) => expect(beta).toBeCloseTo(1e-4 + (t / 999) * (0.02 - 1e-4), 8));
    makeBetas('scaled_linear', 10, 1e-4, 0.04).forEach((beta, t) => expect(Math.sqrt(beta)).toBeCloseTo(0.01 + (t / 9) * 0.19, 6));
    makeBetas('sigmoid', 11, 0.1, 0.3).forEach((beta, t) => expect(beta).toBeCloseTo(0.1 + 0.2 / (1 + Math.exp(6 - 1.2 * t)), 6));
    const f = (t: number) => Math.cos((((t + 0.008) / 1.008) * Math.PI) / 2) ** 2;
    alphasCumprod(cosineBetas(100)).slice(0, 99).forEach((bar, t) => expect(bar).toBeCloseTo(f((t + 1) / 100) / f(0), 6));
    expect(cosineBetas(100)[99]).toBe(0.999);
    const plain = alphasCumprod(makeBetas('scaled_linear', 1000, 0.00085, 0.012));
    const rescaled = alphasCumprod(rescaleZeroTerminalSnr(makeBetas('scaled_linear', 1000, 0.00085, 0.012)));
    expect(rescaled[999]).toBe(0);
    expect(rescaled[0]).toBeCloseTo(plain[0]!, 6);
  });

  test('time-step spacings: table 2 of Lin et al. 2023', () => {
    expect(spacedTimesteps('linspace', 1000, 10, 0, true)).toEqual([999, 888, 777, 666, 555, 444, 333, 222, 111, 0]);
    expect(spacedTimesteps('leading', 1000, 10, 1, true)).toEqual([901, 801, 701, 601, 501, 401, 301, 201, 101, 1]);
    expect(spacedTimesteps('trailing', 1000, 10, 0, true)).toEqual([999, 899, 799, 699, 599, 499, 399, 299, 199, 99]);
    for (let n = 1; n <= 1000; n++) expect(trailingTimesteps(1000, n).length).toBe(n);
    expect(codeOf(() => spacedTimesteps('leading', 1000, 1000, 1, true))).toMatch(/^config: steps_offset 1 /);
  });
});

describe('programs', () => {
  const small = { num_train_timesteps: 25, beta_start: 0.001, beta_end: 0.2 };
  const size = 2 * 12;
  const start = draws(1, size);

  test('DDPM with all T steps is the posterior formula (DDPM algorithm 2)', () => {
    const program = createSampler({ _class_name: 'DDPMScheduler', ...small, clip_sample: false }, { numInferenceSteps: 25 });
    const noises = Array.from({ length: program.noiseDraws }, (_, i) => draws(100 + i, size));
    const process = new DiffusionProcess(makeBetas('linear', 25, 0.001, 0.2));
    let x = start.slice();
    for (let t = 24; t >= 0; t--) {
      const [back, posterior] = [process.predictX0('epsilon', t), process.posterior(t)];
      x = x.map((xt, i) => {
        const x0 = back.xt * xt + back.output * toyModel(Float64Array.of(xt), t)[0]!;
        return posterior.x0 * x0 + posterior.xt * xt + (t > 0 ? Math.sqrt(posterior.variance) * noises[24 - t]![i]! : 0);
      });
    }
    expect(program.noiseDraws).toBe(24);
    expect(maxAbsDifference(runProgramReference(program, start, 2, toyModel, noises), x)).toBeLessThan(1e-4);
  });

  test('learned_range: v = -1 gives beta-tilde and v = 1 gives beta', () => {
    const config = { _class_name: 'DDPMScheduler', ...small, clip_sample: false };
    const noises = Array.from({ length: 24 }, (_, i) => draws(200 + i, size));
    const run = (variance_type: string, v?: number) =>
      runProgramReference(createSampler({ ...config, variance_type }, { numInferenceSteps: 25 }), start, 2, (x, t) => {
        const mean = toyModel(x, t);
        if (v === undefined) return mean;
        const both = new Float64Array(2 * size).fill(v);
        for (const n of [0, 1]) both.set(mean.subarray((n * size) / 2, ((n + 1) * size) / 2), n * size);
        return both;
      }, noises);
    expect(maxAbsDifference(run('learned_range', -1), run('fixed_small'))).toBeLessThan(1e-12);
    expect(maxAbsDifference(run('learned_range', 1), run('fixed_large'))).toBeLessThan(1e-12);
    expect(maxAbsDifference(run('fixed_small_log'), run('fixed_small'))).toBe(0);
    expect(maxAbsDifference(run('learned_range', 1), run('learned_range', 0))).toBeGreaterThan(0.01);
    expect(codeOf(() => run('learned_range'))).toMatch(/^input: .*twice/);
  });

  test('DDIM with eta 1 over all steps is DDPM', () => {
    const config = { ...small, clip_sample: false };
    const noises = Array.from({ length: 25 }, (_, i) => draws(300 + i, size));
    const a = runProgramReference(createSampler({ _class_name: 'DDIMScheduler', ...config }, { numInferenceSteps: 25, eta: 1 }), start, 2, toyModel, noises);
    const b = runProgramReference(createSampler({ _class_name: 'DDPMScheduler', ...config }, { numInferenceSteps: 25 }), start, 2, toyModel, noises);
    expect(maxAbsDifference(a, b)).toBeLessThan(1e-6);
  });

  test.each(['epsilon', 'v_prediction'])('DDIM inversion and DDIM are inverse to each other for a model that knows the image (%s)', (prediction_type) => {
    const image = start.map(Math.tanh);
    const config = { beta_schedule: 'scaled_linear', clip_sample: false, prediction_type, steps_offset: 1 };
    const bars = noiseTables(parseSchedulerConfig({ _class_name: 'DDIMScheduler', ...config })).alphasCumprod;
    // The direction of one straight path from the image to one noise: epsilon is that noise wherever the path is.
    const epsilon = draws(9, size);
    const model = (_: Float64Array, t: number) => {
      const bar = t >= 0 ? bars[t]! : 1;
      return epsilon.map((e, i) => (prediction_type === 'epsilon' ? e : Math.sqrt(bar) * e - Math.sqrt(1 - bar) * image[i]!));
    };
    const inverse = createSampler({ _class_name: 'DDIMInverseScheduler', ...config }, { numInferenceSteps: 20 });
    const noisy = runProgramReference(inverse, image, 2, model);
    expect(inverse.timesteps.slice(0, 3)).toEqual([-49, 1, 51]);
    expect(maxAbsDifference(noisy, image.map((x, i) => Math.sqrt(bars[951]!) * x + Math.sqrt(1 - bars[951]!) * epsilon[i]!))).toBeLessThan(1e-9);
    const back = runProgramReference(createSampler({ _class_name: 'DDIMScheduler', ...config }, { numInferenceSteps: 20 }), noisy, 2, model);
    expect(maxAbsDifference(back, image)).toBeLessThan(1e-6);
  });

  /** The exact solution for Gaussian data: x0 ~ N(0, d^2) makes the ODE linear, with x proportional to sqrt(alphaBar d^2 + 1 - alphaBar). */
  const gaussian = (bars: Float32Array, d: number) => (x: Float64Array, t: number) => {
    const low = Math.floor(t);
    const table = (i: number) => (1 - bars[Math.min(i, bars.length - 1)]!) / bars[Math.min(i, bars.length - 1)]!;
    const sigma = Math.sqrt(table(low)) + (t - low) * (Math.sqrt(table(low + 1)) - Math.sqrt(table(low)));
    const bar = 1 / (1 + sigma ** 2);
    return x.map((value) => (Math.sqrt(1 - bar) / (bar * d ** 2 + 1 - bar)) * value);
  };
  const orders: [string, string, object, number][] = [
    ['DDIM', 'DDIMScheduler', { clip_sample: false }, 1],
    ['Euler', 'EulerDiscreteScheduler', {}, 1],
    ['Heun', 'HeunDiscreteScheduler', {}, 2],
    ['LMS', 'LMSDiscreteScheduler', {}, 2],
    ['PLMS', 'PNDMScheduler', { skip_prk_steps: true }, 2],
    ['PNDM', 'PNDMScheduler', {}, 2],
    ['DPM-Solver++ 1', 'DPMSolverMultistepScheduler', { solver_order: 1 }, 1],
    ['DPM-Solver++ 2 midpoint', 'DPMSolverMultistepScheduler', { solver_order: 2 }, 2],
    ['DPM-Solver++ 2 heun', 'DPMSolverMultistepScheduler', { solver_order: 2, solver_type: 'heun' }, 2],
    ['DPM-Solver++ 3', 'DPMSolverMultistepScheduler', { solver_order: 3 }, 2],
    ['DPM-Solver 2', 'DPMSolverMultistepScheduler', { algorithm_type: 'dpmsolver' }, 2],
    ['DPM-Solver 3', 'DPMSolverMultistepScheduler', { algorithm_type: 'dpmsolver', solver_order: 3 }, 2],
    ['DPM-Solver++ 2 single-step', 'DPMSolverSinglestepScheduler', { solver_order: 2 }, 2],
    ['DPM-Solver 3 single-step', 'DPMSolverSinglestepScheduler', { algorithm_type: 'dpmsolver', solver_order: 3, solver_type: 'heun' }, 2],
    ['UniPC 1', 'UniPCMultistepScheduler', { solver_order: 1 }, 2],
    ['UniPC 2', 'UniPCMultistepScheduler', { solver_order: 2 }, 2],
    ['UniPC 3', 'UniPCMultistepScheduler', { solver_order: 3, predict_x0: false, solver_type: 'bh1' }, 2],
  ];
  test.each(orders)('%s converges to the exact solution of the probability-flow ODE', (_, _class_name, extra, order) => {
    const config = { _class_name, beta_schedule: 'scaled_linear', beta_start: 0.00085, beta_end: 0.012, ...extra };
    const { alphasCumprod: bars } = noiseTables(parseSchedulerConfig(config));
    const d = 0.5;
    const scaleAt = (t: number) => Math.sqrt(bars[t]! * d ** 2 + 1 - bars[t]!);
    const errorAt = (numInferenceSteps: number): number => {
      const program = createSampler(config, { numInferenceSteps });
      const ve = program.steps[0]!.inputScale !== 1;
      // Both views start at the first time step's distribution; the variance-exploding one ends at sigma 0, the others at t = 0 or where the spacing ends.
      const first = Math.floor(program.timesteps[0]!);
      const end = ve || (_class_name === 'DDIMScheduler') ? d : scaleAt(0);
      const from = ve ? scaleAt(first) / Math.sqrt(bars[first]!) : scaleAt(first);
      const noises = Array.from({ length: program.noiseDraws }, () => Float64Array.of(1)); // Euler draws, and multiplies by 0
      const last = runProgramReference(program, Float64Array.of(from), 1, gaussian(bars, d), noises);
      return Math.abs(last[0]! / end - 1);
    };
    const [coarse, fine] = [errorAt(50), errorAt(250)];
    expect(fine).toBeLessThan(order === 1 ? 0.02 : 0.005);
    // Heun is at the error of its last, first-order step already (half the square of the smallest sigma over d).
    if (_class_name !== 'HeunDiscreteScheduler') expect(coarse / fine).toBeGreaterThan(order === 1 ? 3.5 : 5);
  });

  test('every class compiles for every spacing and prediction type that it allows, within the slots', () => {
    let compiled = 0;
    for (const _class_name of schedulerClasses)
      for (const timestep_spacing of ['leading', 'trailing', 'linspace'])
        for (const prediction_type of ['epsilon', 'sample', 'v_prediction'])
          for (const extra of [{}, { solver_order: 3 }, { use_karras_sigmas: true }, { clip_sample: true, thresholding: true }]) {
            let program: SamplerProgram;
            try {
              program = createSampler({ _class_name, timestep_spacing, prediction_type, ...extra }, { numInferenceSteps: 13 });
            } catch (error) {
              expect(error).toBeInstanceOf(BruitError);
              expect((error as Error).message).toMatch(/timestep_spacing|prediction_type/);
              continue;
            }
            compiled++;
            expect(program.slots).toBeLessThanOrEqual(MAX_SLOTS);
            const noises = Array.from({ length: program.noiseDraws }, (_, i) => draws(i + 1, size));
            const last = runProgramReference(program, start.map((v) => v * program.initNoiseSigma), 2, toyModel, noises);
            expect(last.every(Number.isFinite), `${_class_name} ${timestep_spacing} ${prediction_type} ${JSON.stringify(extra)}`).toBe(true);
          }
    expect(compiled).toBeGreaterThan(250);
  });

  test('packing keeps every number of a step', () => {
    const program = createSampler({ _class_name: 'UniPCMultistepScheduler' }, { numInferenceSteps: 5 });
    const table = packProgram(program);
    expect(table.length).toBe(5 * STEP_STRIDE);
    program.steps.forEach((step, i) => {
      const row = table.subarray(i * STEP_STRIDE, (i + 1) * STEP_STRIDE);
      [step.predX0, step.next, step.store[0]!.value, step.store[1]!.value].forEach((linear, r) => expect(row.subarray(r * COLUMNS, (r + 1) * COLUMNS)).toEqual(Float32Array.from(linear)));
      expect(Array.from(row.subarray(4 * COLUMNS))).toEqual([step.timestep, step.inputScale, step.store[0]!.slot, step.store[1]!.slot, -1, 0, 0, 0]);
    });
  });

  test('dynamic thresholding is per image, by linear interpolation between ranks', () => {
    const x0 = Float64Array.of(-4, 1, 2, 3, 0, 0.1, 0.2, 0.3);
    applyBound({ kind: 'quantile', ratio: 0.5, maxValue: 10 }, x0, 2);
    expect(Array.from(x0)).toEqual([-1, 0.4, 0.8, 1, 0, 0.1, 0.2, 0.3]);
    const capped = Float64Array.of(-4, 1, 2, 3);
    applyBound({ kind: 'quantile', ratio: 1, maxValue: 2 }, capped, 1);
    expect(Array.from(capped)).toEqual([-1, 0.5, 1, 1]);
  });

  test('custom time steps of DDPM step between the ones given', () => {
    const config = { _class_name: 'DDPMScheduler', ...small };
    const all = Array.from({ length: 25 }, (_, i) => 24 - i);
    expect(createSampler(config, { timesteps: all })).toEqual(createSampler(config, { numInferenceSteps: 25 }));
    expect(createSampler(config, { timesteps: [20, 7, 0] }).timesteps).toEqual([20, 7, 0]);
    expect(codeOf(() => createSampler(config, { timesteps: [7, 20] }))).toMatch(/^config: timesteps/);
  });
});

describe('scheduler_config.json', () => {
  test('reads what Python writes', () => {
    const config = parseSchedulerConfig('{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.21.4", "lambda_min_clipped": -Infinity, "variance_type": null, "solver_type": "bh2"}');
    expect(config.lambda_min_clipped).toBe(-Infinity);
    expect(config.solver_type).toBe('midpoint');
    expect(config.timestep_spacing).toBe('linspace');
  });

  test.each([
    [{ _class_name: 'DDPMScheduler', beta_shedule: 'linear' }, /unknown key beta_shedule \(value "linear"\); DDPMScheduler knows: .*beta_schedule/],
    [{ _class_name: 'DDPMScheduler', beta_schedule: 'cosine' }, /beta_schedule is "cosine"; allowed: .*"squaredcos_cap_v2"/],
    [{ _class_name: 'KarrasVeScheduler' }, /_class_name is "KarrasVeScheduler"; allowed: DDPMScheduler/],
    [{ _class_name: 'DDPMScheduler', num_train_timesteps: 0.5 }, /num_train_timesteps is 0.5/],
    [{ _class_name: 'PNDMScheduler', prediction_type: 'sample' }, /prediction_type is "sample"; allowed: "epsilon", "v_prediction"/],
    [{ _class_name: 'DDPMScheduler', trained_betas: [0.1, 0.2] }, /trained_betas is .*num_train_timesteps \(1000\)/],
    [{ _class_name: 'DPMSolverMultistepScheduler', solver_order: 4 }, /solver_order is 4; allowed: 1, 2, 3/],
    [{ _class_name: 'DPMSolverMultistepScheduler', solver_order: 3, algorithm_type: 'sde-dpmsolver' }, /solver_order is 3; allowed: 1, 2 with/],
    [{ _class_name: 'DPMSolverMultistepScheduler', algorithm_type: 'dpmsolver', final_sigmas_type: 'zero' }, /final_sigmas_type is "zero"; allowed: "sigma_min" with/],
    [{ _class_name: 'UniPCMultistepScheduler', use_exponential_sigmas: true }, /use_exponential_sigmas is true; allowed: false/],
    [{ _class_name: 'EulerDiscreteScheduler', use_beta_sigmas: true }, /use_beta_sigmas is true; allowed: false/],
    ['{"_class_name": "DDPMScheduler",', /not valid JSON/],
    ['[]', /expected a JSON object/],
  ])('refuses %j', (config, message) => expect(codeOf(() => parseSchedulerConfig(config, 's.json'))).toMatch(new RegExp(`^config: s\\.json: ${message.source}`)));

  test('refuses options that do not fit', () => {
    expect(codeOf(() => createSampler({ _class_name: 'DDPMScheduler' }, { numInferenceSteps: 10, eta: 1 }))).toMatch(/^config: DDPMScheduler does not take the option eta \(value 1\)/);
    expect(codeOf(() => createSampler({ _class_name: 'DDPMScheduler' }, { numInferenceSteps: 2000 }))).toMatch(/^config: numInferenceSteps is 2000/);
    expect(codeOf(() => createSampler({ _class_name: 'DDPMScheduler' }, {}))).toMatch(/^config: numInferenceSteps is missing/);
    expect(codeOf(() => createSampler({ _class_name: 'PNDMScheduler' }, { numInferenceSteps: 3 }))).toMatch(/^config: numInferenceSteps is 3/);
    expect(codeOf(() => createSampler({ _class_name: 'DDIMScheduler', rescale_betas_zero_snr: true, timestep_spacing: 'trailing', clip_sample: false }, { numInferenceSteps: 5 }))).toMatch(/^config: .*timestep 999.*prediction type/);
  });

  test('keys of other classes are accepted and do nothing, as in diffusers', () => {
    const plain = createSampler({ _class_name: 'DDIMScheduler' }, { numInferenceSteps: 7 });
    expect(createSampler({ _class_name: 'DDIMScheduler', skip_prk_steps: true, solver_order: 3 }, { numInferenceSteps: 7 })).toEqual(plain);
  });

  test("diffusers' notes are no keys, and what later versions add may be off", () => {
    const plain = parseSchedulerConfig({ _class_name: 'UniPCMultistepScheduler' });
    expect(parseSchedulerConfig({ _class_name: 'UniPCMultistepScheduler', _commit_hash: 'a', use_beta_sigmas: false, use_dynamic_shifting: false, time_shift_type: 'exponential', shift_terminal: null, flow_shift: 1.0 })).toEqual(plain);
  });

  test('an end that nobody chose is not carried to another class', () => {
    const convert = (extra: object) => convertSchedulerConfig(parseSchedulerConfig({ _class_name: 'DPMSolverMultistepScheduler', ...extra }), 'EulerDiscreteScheduler').final_sigmas_type;
    expect(convert({})).toBe('zero');
    expect(convert({ final_sigmas_type: 'zero' })).toBe('zero');
  });

  test('conversion keeps what both classes know', () => {
    const ddim = convertSchedulerConfig(parseSchedulerConfig({ _class_name: 'DDPMScheduler', beta_schedule: 'sigmoid', prediction_type: 'v_prediction', clip_sample: false, variance_type: 'learned' }), 'DDIMScheduler');
    expect(ddim).toMatchObject({ _class_name: 'DDIMScheduler', beta_schedule: 'sigmoid', prediction_type: 'v_prediction', clip_sample: false, variance_type: null, set_alpha_to_one: true });
  });
});

describe('options of later diffusers versions', () => {
  test.each([
    ['DPMSolverMultistepScheduler', { solver_order: 3 }, 20],
    ['DPMSolverMultistepScheduler', { algorithm_type: 'sde-dpmsolver++' }, 7],
    ['DPMSolverSinglestepScheduler', { solver_order: 2 }, 8],
    ['UniPCMultistepScheduler', { solver_order: 3, lower_order_final: false }, 6],
  ])('%s %j: a last step to noise 0 gives the predicted x0', (_class_name, options, numInferenceSteps) => {
    const [zero, plain] = ['zero', 'sigma_min'].map((final_sigmas_type) => createSampler({ _class_name, ...options, final_sigmas_type }, { numInferenceSteps }).steps);
    expect(zero!.at(-1)!.next).toEqual(zero!.at(-1)!.predX0);
    expect(zero!.slice(0, -1)).toEqual(plain!.slice(0, -1));
    expect(plain).toEqual(createSampler({ _class_name, ...options }, { numInferenceSteps }).steps);
  });

  test('euler_at_final: the last step reads no history', () => {
    const last = (euler_at_final: boolean) => createSampler({ _class_name: 'DPMSolverMultistepScheduler', euler_at_final, lower_order_final: false }, { numInferenceSteps: 20 }).steps.at(-1)!.next.slice(4);
    expect(last(true).every((c) => c === 0)).toBe(true);
    expect(last(false).some((c) => c !== 0)).toBe(true);
  });

  test('exponential sigmas have one ratio, and Euler may end at the smallest of the process', () => {
    const config = { _class_name: 'EulerDiscreteScheduler', use_exponential_sigmas: true, final_sigmas_type: 'sigma_min' };
    const sigmas = createSampler(config, { numInferenceSteps: 6 }).sigmas!;
    const ratio = sigmas[1]! / sigmas[0]!;
    for (let i = 1; i < 6; i++) expect(sigmas[i]! / sigmas[i - 1]!).toBeCloseTo(ratio, 5);
    const bar = noiseTables(parseSchedulerConfig(config)).alphasCumprod[0]!;
    expect(sigmas[6]).toBeCloseTo(Math.sqrt((1 - bar) / bar), 6);
  });

  test('zero terminal SNR stays finite in sigma', () => {
    const config = { rescale_betas_zero_snr: true, timestep_spacing: 'trailing', prediction_type: 'v_prediction' };
    expect(createSampler({ _class_name: 'EulerDiscreteScheduler', ...config }, { numInferenceSteps: 5 }).sigmas![0]).toBeCloseTo(Math.sqrt(2 ** 24 - 1), 2);
    for (const _class_name of ['EulerAncestralDiscreteScheduler', 'DPMSolverMultistepScheduler', 'UniPCMultistepScheduler', 'DDPMScheduler']) expect(createSampler({ _class_name, ...config }, { numInferenceSteps: 5 }).timesteps[0]).toBe(999);
  });

  test('third order of sde-dpmsolver++', () => {
    const config = { _class_name: 'DPMSolverMultistepScheduler', algorithm_type: 'sde-dpmsolver++', solver_order: 3, prediction_type: 'sample' };
    const { steps, timesteps } = createSampler(config, { numInferenceSteps: 20 });
    const bars = noiseTables(parseSchedulerConfig(config)).alphasCumprod;
    const i = 10;
    const [s2, s1, s0, t] = timesteps.slice(i - 2, i + 2).map((at) => ({ alpha: Math.sqrt(bars[at]!), sigma: Math.sqrt(1 - bars[at]!) })) as [Point, Point, Point, Point];
    const lambda = (p: Point) => Math.log(p.alpha / p.sigma);
    const h = lambda(t) - lambda(s0);
    const [r0, r1] = [(lambda(s0) - lambda(s1)) / h, (lambda(s1) - lambda(s2)) / h];
    // x0 values now, one and two steps before, as the integral of a parabola through them.
    const [m0, m1, m2] = [0.3, -0.7, 1.1] as const;
    const [d10, d11] = [(m0 - m1) / r0, (m1 - m2) / r1];
    const [d1, d2] = [d10 + (r0 / (r0 + r1)) * (d10 - d11), (d10 - d11) / (r0 + r1)];
    const e = 1 - Math.exp(-2 * h);
    const expected = t.alpha * (e * m0 + (e / (-2 * h) + 1) * d1 + ((e - 2 * h) / (4 * h * h) - 0.5) * d2);
    const { next, store } = steps[i]!;
    const slots = [m2, m1];
    const [written] = store.map((x) => x.slot) as [number];
    const value = next[1]! * m0 + next[2]! * m0 + slots.reduce((sum, m, back) => sum + next[4 + ((written + back) % 2)]! * m, 0);
    expect(value).toBeCloseTo(expected, 5);
    expect(next[0]).toBeCloseTo((t.sigma / s0.sigma) * Math.exp(-h), 6);
    expect(next[3]).toBeCloseTo(t.sigma * Math.sqrt(e), 6);
  });
});

interface Point {
  alpha: number;
  sigma: number;
}

describe('ends of the schedule', () => {
  test.each(['DDIMScheduler', 'DDPMScheduler'])('%s: at pure noise an epsilon model gives a bounded x0 by its sign', (_class_name) => {
    const program = createSampler({ _class_name, rescale_betas_zero_snr: true, timestep_spacing: 'trailing', clip_sample_range: 2 }, { numInferenceSteps: 5 });
    const [first] = program.steps;
    const noises = Array.from({ length: program.noiseDraws }, () => new Float64Array(2));
    const seen: Float64Array[] = [];
    runProgramReference(program, [1.5, -0.2], 1, () => [0.5, 0.4], noises, ({ x0 }) => void seen.push(x0.slice()));
    expect(first!.timestep).toBe(999);
    expect([...seen[0]!]).toEqual([2, -2]);
    expect(packProgram(program).every(Number.isFinite)).toBe(true);
  });

  test('sigmas beyond the table are its last', () => {
    const { timesteps, sigmas } = createSampler({ _class_name: 'EulerDiscreteScheduler', timestep_spacing: 'leading', steps_offset: 1 }, { numInferenceSteps: 1000 });
    expect(timesteps.slice(0, 2)).toEqual([1000, 999]);
    expect(sigmas![0]).toBe(sigmas![1]);
  });
});

describe('UnCLIPScheduler', () => {
  const config = (stage: string) => goldenJson<object>('pipeline_unclip_tiny', `${stage}_scheduler/scheduler_config.json`);
  const run = loadGolden('pipeline_unclip_tiny', 'runs/unclip.safetensors');
  const data = (name: string) => run.get(name)!.data;

  // fixed_small_log of a sample, learned_range, fixed_small_log of epsilon.
  test.each([['prior', 5, 1], ['decoder', 5, 6], ['super_res', 3, 11]] as const)('the first step of the recorded %s', (stage, count, draw) => {
    const program = createSampler(config(stage), { numInferenceSteps: count });
    expect(program.timesteps).toEqual(Array.from(data(`${stage}.timesteps`)));
    const sample = data(`${stage}.step_sample.0`);
    const noises = Array.from({ length: program.noiseDraws }, () => data(`draw.${draw}`));
    const after: Float64Array[] = [];
    runProgramReference(program, sample, 2, () => data(`${stage}.model_output.0`), noises, (step) => after.push(step.sample.slice()));
    const expected = data(`${stage}.latents.0`);
    const largest = Math.max(...expected.map(Math.abs));
    expect(maxAbsDifference(after[0]!, expected)).toBeLessThan(2e-6 * largest);
  });

  test('goes from one end of the schedule to the other', () => {
    const noisy = createSampler({ _class_name: 'UnCLIPScheduler' }, { numInferenceSteps: 2 });
    expect(noisy.timesteps).toEqual([999, 0]);
    expect(noisy.noiseDraws).toBe(1);
    expect(createSampler({ _class_name: 'UnCLIPScheduler' }, { numInferenceSteps: 1000 }).timesteps).toEqual(Array.from({ length: 1000 }, (_, i) => 999 - i));
    expect(codeOf(() => createSampler({ _class_name: 'UnCLIPScheduler' }, { numInferenceSteps: 1 }))).toMatch(/config: numInferenceSteps is 1; allowed: 2/);
    expect(codeOf(() => createSampler({ _class_name: 'UnCLIPScheduler', beta_schedule: 'linear' }, { numInferenceSteps: 5 }))).toMatch(/beta_schedule is "linear"; allowed: "squaredcos_cap_v2"/);
  });
});
