/**
 * diffusers' scheduler_config.json: reading, checking, and compiling it into a {@link SamplerProgram}. Keys, defaults and meanings are those of
 * diffusers 0.21.4; LCM's, which came later, those of 0.39.
 */
import { BruitError, check } from '../engine/errors';
import { parsePythonJson } from '../io/json';
import { ddim, ddimInverse } from './ddim';
import { ddpm } from './ddpm';
import { dpmSolverMultistep, dpmSolverSinglestep } from './dpmpp';
import { euler } from './euler';
import { eulerAncestral } from './euler_ancestral';
import { heun } from './heun';
import { lcm } from './lcm';
import { lms } from './lms';
import { pndm } from './pndm';
import { alphasCumprod, makeBetas, rescaleZeroTerminalSnr, type BetaSchedule, type TimestepSpacing } from './schedules';
import type { PredictionType } from './prediction';
import type { SamplerProgram } from './program';
import { unclip } from './unclip';
import { unipc } from './unipc';

/** A complete configuration: every key of every class, those that the class lacks at the value that means "off". */
export interface SchedulerConfig {
  _class_name: SchedulerClass;
  num_train_timesteps: number;
  beta_start: number;
  beta_end: number;
  beta_schedule: BetaSchedule;
  /** Overrides the schedule; one value per train time step. */
  trained_betas: readonly number[] | null;
  prediction_type: PredictionType;
  timestep_spacing: TimestepSpacing;
  /** Added to every time step of the "leading" spacing. */
  steps_offset: number;
  clip_sample: boolean;
  clip_sample_range: number;
  /** Dynamic thresholding of the predicted x0 in place of clipping. */
  thresholding: boolean;
  dynamic_thresholding_ratio: number;
  sample_max_value: number;
  variance_type: 'fixed_small' | 'fixed_small_log' | 'fixed_large' | 'fixed_large_log' | 'learned' | 'learned_range' | null;
  /** Whether alphas_cumprod after the last step is 1, or that of t = 0. */
  set_alpha_to_one: boolean;
  rescale_betas_zero_snr: boolean;
  skip_prk_steps: boolean;
  use_karras_sigmas: boolean;
  /** Sigmas evenly spaced in their logarithm. */
  use_exponential_sigmas: boolean;
  interpolation_type: 'linear' | 'log_linear';
  solver_order: number;
  algorithm_type: 'dpmsolver' | 'dpmsolver++' | 'sde-dpmsolver' | 'sde-dpmsolver++';
  solver_type: 'midpoint' | 'heun' | 'bh1' | 'bh2';
  lower_order_final: boolean;
  /** DPM-Solver++: the last step is of first order. */
  euler_at_final: boolean;
  /** Where the last step ends: at noise 0, or at that of the time step 0. */
  final_sigmas_type: 'zero' | 'sigma_min';
  lambda_min_clipped: number;
  predict_x0: boolean;
  /** UniPC: indices of steps after which the corrector is not applied. */
  disable_corrector: readonly number[];
  /** LCM: steps that the model was distilled with, of which a run takes some. */
  original_inference_steps: number;
  /** LCM: factor on the time step in the boundary condition. */
  timestep_scaling: number;
}
type Key = Exclude<keyof SchedulerConfig, '_class_name'>;

/** The noise tables of a configuration, float32 values, index = time step. */
export interface NoiseTables {
  readonly betas: Float32Array;
  readonly alphasCumprod: Float32Array;
}

/** How many steps to take, and diffusers' keyword arguments of `step`. */
export interface SamplerOptions {
  numInferenceSteps?: number;
  /** Leaves out the first so many model evaluations (image to image): multi-step methods start at low order there. */
  begin?: number;
  /** DDPM only, instead of numInferenceSteps: descending train time steps. */
  timesteps?: readonly number[];
  /** DDIM: 0 deterministic, 1 as noisy as DDPM. */
  eta?: number;
  /** DDIM: compute epsilon anew from the bounded x0. */
  use_clipped_model_output?: boolean;
  /** Euler: Karras et al. 2022, algorithm 2. */
  s_churn?: number;
  s_tmin?: number;
  s_tmax?: number;
  s_noise?: number;
  /** LMS: derivatives used. */
  order?: number;
  /** LCM: in place of the configuration's. */
  original_inference_steps?: number;
}

type Builder = (config: SchedulerConfig, tables: NoiseTables, options: SamplerOptions & { numInferenceSteps: number }) => SamplerProgram;

interface ClassSpec {
  readonly build: Builder;
  /** Keys beside the common ones. */
  readonly keys: readonly Key[];
  readonly stepKwargs?: readonly (keyof SamplerOptions)[];
  readonly defaults?: Partial<SchedulerConfig>;
  /** Narrower than the key's own. */
  readonly allowed?: Partial<Record<Key, readonly unknown[]>>;
}

const COMMON: readonly Key[] = ['num_train_timesteps', 'beta_start', 'beta_end', 'beta_schedule', 'trained_betas', 'prediction_type', 'timestep_spacing', 'steps_offset'];
const THRESHOLDING: readonly Key[] = ['thresholding', 'dynamic_thresholding_ratio', 'sample_max_value'];
const CLIPPING: readonly Key[] = ['clip_sample', 'clip_sample_range'];
const SOLVER: readonly Key[] = [...THRESHOLDING, 'solver_order', 'solver_type', 'lower_order_final', 'final_sigmas_type', 'use_karras_sigmas'];

/** Defaults where the class names no other: the values that mean "off", then the common ones of diffusers. */
const DEFAULTS: Omit<SchedulerConfig, '_class_name'> = {
  num_train_timesteps: 1000,
  beta_start: 0.0001,
  beta_end: 0.02,
  beta_schedule: 'linear',
  trained_betas: null,
  prediction_type: 'epsilon',
  timestep_spacing: 'leading',
  steps_offset: 0,
  clip_sample: false,
  clip_sample_range: 1,
  thresholding: false,
  dynamic_thresholding_ratio: 0.995,
  sample_max_value: 1,
  variance_type: null,
  set_alpha_to_one: true,
  rescale_betas_zero_snr: false,
  skip_prk_steps: false,
  use_karras_sigmas: false,
  use_exponential_sigmas: false,
  interpolation_type: 'linear',
  solver_order: 2,
  algorithm_type: 'dpmsolver++',
  solver_type: 'midpoint',
  lower_order_final: true,
  euler_at_final: false,
  final_sigmas_type: 'zero',
  lambda_min_clipped: -Infinity,
  predict_x0: true,
  disable_corrector: [],
  original_inference_steps: 50,
  timestep_scaling: 10,
};

const PREDICTIONS = ['epsilon', 'sample', 'v_prediction'] as const;
const SPACINGS = ['leading', 'trailing', 'linspace'] as const;
const LINSPACE = { timestep_spacing: 'linspace' } as const;
/** Configurations without final_sigmas_type are of versions that knew no other end. */
const SOLVER_DEFAULTS = { ...LINSPACE, final_sigmas_type: 'sigma_min' } as const;
/** diffusers takes another family's names for its own default, so that configurations can be passed between classes. */
const SOLVER_ALIASES = { midpoint: 'midpoint', heun: 'heun', logrho: 'midpoint', bh1: 'midpoint', bh2: 'midpoint' };
const UNIPC_ALIASES = { bh1: 'bh1', bh2: 'bh2', midpoint: 'bh2', heun: 'bh2', logrho: 'bh2' };

const CLASSES = {
  DDPMScheduler: {
    build: ddpm,
    keys: [...CLIPPING, ...THRESHOLDING, 'variance_type', 'rescale_betas_zero_snr'],
    stepKwargs: ['timesteps'],
    defaults: { clip_sample: true, variance_type: 'fixed_small' },
    allowed: { variance_type: ['fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log', 'learned', 'learned_range'] },
  },
  DDIMScheduler: {
    build: ddim,
    keys: [...CLIPPING, ...THRESHOLDING, 'set_alpha_to_one', 'rescale_betas_zero_snr'],
    stepKwargs: ['eta', 'use_clipped_model_output'],
    defaults: { clip_sample: true },
  },
  DDIMInverseScheduler: {
    build: ddimInverse,
    keys: [...CLIPPING, 'set_alpha_to_one', 'rescale_betas_zero_snr'],
    defaults: { clip_sample: true },
    allowed: { timestep_spacing: ['leading', 'trailing'] },
  },
  LCMScheduler: {
    build: lcm,
    keys: [...CLIPPING, ...THRESHOLDING, 'set_alpha_to_one', 'rescale_betas_zero_snr', 'original_inference_steps', 'timestep_scaling'],
    stepKwargs: ['original_inference_steps'],
    defaults: { beta_start: 0.00085, beta_end: 0.012, beta_schedule: 'scaled_linear' },
  },
  PNDMScheduler: { build: pndm, keys: ['skip_prk_steps', 'set_alpha_to_one'], defaults: { set_alpha_to_one: false }, allowed: { prediction_type: ['epsilon', 'v_prediction'] } },
  LMSDiscreteScheduler: { build: lms, keys: ['use_karras_sigmas', 'use_exponential_sigmas'], stepKwargs: ['order'], defaults: LINSPACE },
  HeunDiscreteScheduler: { build: heun, keys: ['use_karras_sigmas', 'use_exponential_sigmas', ...CLIPPING], defaults: { ...LINSPACE, beta_start: 0.00085, beta_end: 0.012 } },
  EulerDiscreteScheduler: {
    build: euler,
    keys: ['interpolation_type', 'use_karras_sigmas', 'use_exponential_sigmas', 'final_sigmas_type', 'rescale_betas_zero_snr'],
    stepKwargs: ['s_churn', 's_tmin', 's_tmax', 's_noise'],
    defaults: LINSPACE,
    allowed: { prediction_type: [...PREDICTIONS, 'original_sample'] },
  },
  EulerAncestralDiscreteScheduler: { build: eulerAncestral, keys: ['rescale_betas_zero_snr'], defaults: LINSPACE, allowed: { prediction_type: ['epsilon', 'v_prediction'] } },
  DPMSolverMultistepScheduler: { build: dpmSolverMultistep, keys: [...SOLVER, 'algorithm_type', 'lambda_min_clipped', 'variance_type', 'euler_at_final', 'rescale_betas_zero_snr'], defaults: SOLVER_DEFAULTS },
  DPMSolverSinglestepScheduler: {
    build: dpmSolverSinglestep,
    keys: [...SOLVER, 'algorithm_type', 'lambda_min_clipped', 'variance_type'],
    defaults: SOLVER_DEFAULTS,
    allowed: { algorithm_type: ['dpmsolver', 'dpmsolver++', 'deis'], timestep_spacing: ['linspace'] },
  },
  UnCLIPScheduler: {
    build: unclip,
    keys: [...CLIPPING, 'variance_type'],
    defaults: { clip_sample: true, variance_type: 'fixed_small_log', beta_schedule: 'squaredcos_cap_v2' },
    allowed: { variance_type: ['fixed_small_log', 'learned_range'], prediction_type: ['epsilon', 'sample'], beta_schedule: ['squaredcos_cap_v2'] },
  },
  UniPCMultistepScheduler: { build: unipc, keys: [...SOLVER, 'predict_x0', 'disable_corrector', 'rescale_betas_zero_snr'], defaults: { ...SOLVER_DEFAULTS, solver_type: 'bh2' } },
} as const satisfies Record<string, ClassSpec>;

/** The schedulers that bruit has, by diffusers' class name. */
export type SchedulerClass = keyof typeof CLASSES;
export const schedulerClasses = Object.keys(CLASSES) as SchedulerClass[];
const spec = (name: SchedulerClass): ClassSpec => CLASSES[name];

type Check = readonly [is: (value: unknown) => boolean, allowed: string];
const oneOf = (...values: readonly unknown[]): Check => [(v) => values.includes(v), values.map((v) => JSON.stringify(v)).join(', ')];
const boolean = oneOf(true, false);
const number = (is: (v: number) => boolean, allowed: string): Check => [(v) => typeof v === 'number' && is(v), allowed];
const positive = number((v) => v > 0 && v < Infinity, 'a positive number');
const beta = number((v) => v > 0 && v < 1, 'a number between 0 and 1');
const count = (least: number): Check => number((v) => Number.isInteger(v) && v >= least, `an integer of at least ${least}`);

const CHECKS: Record<Key, Check> = {
  num_train_timesteps: count(2),
  beta_start: beta,
  beta_end: beta,
  beta_schedule: oneOf('linear', 'scaled_linear', 'squaredcos_cap_v2', 'sigmoid', 'exp'),
  trained_betas: [(v) => v === null || (Array.isArray(v) && v.every(beta[0])), 'null or a list of numbers between 0 and 1'],
  prediction_type: oneOf(...PREDICTIONS),
  timestep_spacing: oneOf(...SPACINGS),
  steps_offset: count(0),
  clip_sample: boolean,
  clip_sample_range: positive,
  thresholding: boolean,
  dynamic_thresholding_ratio: number((v) => v >= 0 && v <= 1, 'a number from 0 to 1'),
  sample_max_value: positive,
  variance_type: oneOf('fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log', 'learned', 'learned_range', null),
  set_alpha_to_one: boolean,
  rescale_betas_zero_snr: boolean,
  skip_prk_steps: boolean,
  use_karras_sigmas: boolean,
  use_exponential_sigmas: boolean,
  interpolation_type: oneOf('linear', 'log_linear'),
  solver_order: count(1),
  algorithm_type: oneOf('dpmsolver', 'dpmsolver++', 'sde-dpmsolver', 'sde-dpmsolver++', 'deis'),
  solver_type: oneOf(...Object.keys(SOLVER_ALIASES)),
  lower_order_final: boolean,
  euler_at_final: boolean,
  final_sigmas_type: oneOf('zero', 'sigma_min'),
  lambda_min_clipped: number((v) => v < Infinity, 'a number or -Infinity'),
  predict_x0: boolean,
  original_inference_steps: count(1),
  timestep_scaling: positive,
  disable_corrector: [(v) => Array.isArray(v) && v.every(count(0)[0]), 'a list of step indices'],
};

/** Keys that do not touch the arithmetic, beside diffusers' own notes, which begin with an underscore. */
const IGNORED = new Set(['timestep_values', 'tensor_format', 'time_shift_type']);

/** Keys of later diffusers versions (and UniPC's solver_p), with the values at which they change nothing here. */
const NEUTRAL: Record<string, readonly unknown[]> = {
  solver_p: [null],
  use_lu_lambdas: [false, null],
  use_exponential_sigmas: [false, null],
  use_beta_sigmas: [false, null],
  use_flow_sigmas: [false, null],
  use_dynamic_shifting: [false, null],
  flow_shift: [1],
  shift_terminal: [null],
  timestep_type: ['discrete'],
  sigma_min: [null],
  sigma_max: [null],
};

/**
 * Checks a scheduler_config.json (its text, or the parsed object) and fills in the defaults of its class.
 *
 * As in diffusers, keys that belong to another scheduler class (`skip_prk_steps` in a DDIM configuration, which public checkpoints have) are accepted
 * and do nothing.
 * @param file named in errors.
 * @throws BruitError `config` naming the key, its value and what is allowed, for unknown classes and keys, and for values out of range.
 */
export function parseSchedulerConfig(source: string | object, file = 'scheduler_config.json'): SchedulerConfig {
  let raw: unknown = source;
  try {
    if (typeof source === 'string') raw = parsePythonJson(source);
  } catch (cause) {
    throw new BruitError('config', `${file}: not valid JSON: ${(cause as Error).message}`, { cause });
  }
  check(typeof raw === 'object' && raw !== null && !Array.isArray(raw), 'config', () => `${file}: expected a JSON object`);
  const given = raw as Record<string, unknown>;
  const fail = (key: string, value: unknown, allowed: string): never => {
    throw new BruitError('config', `${file}: ${key} is ${show(value)}; allowed: ${allowed}`);
  };
  const className = given._class_name as SchedulerClass;
  if (!schedulerClasses.includes(className)) fail('_class_name', className, schedulerClasses.join(', '));
  const { keys, defaults, allowed } = spec(className);
  const config: SchedulerConfig = { ...DEFAULTS, ...defaults, _class_name: className };
  const skipped = new Set(Array.isArray(given._use_default_values) ? (given._use_default_values as string[]) : []);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith('_') || IGNORED.has(key) || skipped.has(key)) continue;
    const known = COMMON.includes(key as Key) || keys.includes(key as Key);
    if (!known && Object.hasOwn(NEUTRAL, key)) {
      if (!NEUTRAL[key]!.includes(value)) fail(key, value, `${NEUTRAL[key]!.map(show).join(', ')} (what it means otherwise is not supported)`);
    } else if (!Object.hasOwn(CHECKS, key)) {
      throw new BruitError('config', `${file}: unknown key ${key} (value ${show(value)}); ${className} knows: ${[...COMMON, ...keys].join(', ')}`);
    } else if (known) {
      // Python's None stands for "off" in the optional booleans.
      const read = value === null && CHECKS[key as Key] === boolean ? false : value;
      const narrowed = allowed?.[key as Key];
      const [is, what] = narrowed ? oneOf(...narrowed) : CHECKS[key as Key];
      if (!is(read)) fail(key, value, what);
      Object.assign(config, { [key]: read });
    }
  }
  if ((config.prediction_type as string) === 'original_sample') config.prediction_type = 'sample';
  if ((config.algorithm_type as string) === 'deis') config.algorithm_type = 'dpmsolver++';
  config.solver_type = (className === 'UniPCMultistepScheduler' ? UNIPC_ALIASES : SOLVER_ALIASES)[config.solver_type] as SchedulerConfig['solver_type'];
  const { trained_betas: betas, num_train_timesteps: total } = config;
  if (betas && betas.length !== total) fail('trained_betas', `a list of ${betas.length}`, `as many values as num_train_timesteps (${total})`);
  if (className.startsWith('DPMSolver')) {
    if (config.solver_order > 3) fail('solver_order', config.solver_order, '1, 2, 3');
    if (config.algorithm_type === 'sde-dpmsolver' && config.solver_order === 3) fail('solver_order', 3, '1, 2 with algorithm_type "sde-dpmsolver", which has no third order');
  }
  // Without a model value that is an image, the last step is the limit of epsilon over noise 0.
  const toImage = className === 'UniPCMultistepScheduler' ? config.predict_x0 : config.algorithm_type.endsWith('++');
  if (keys.includes('solver_order') && config.final_sigmas_type === 'zero' && !toImage) fail('final_sigmas_type', 'zero', '"sigma_min" with solvers that predict epsilon');
  if (className === 'UniPCMultistepScheduler' && config.solver_order > 5) fail('solver_order', config.solver_order, '1, 2, 3, 4, 5');
  return config;
}

const show = (value: unknown): string => (typeof value === 'number' ? String(value) : (JSON.stringify(value) ?? 'missing'));

/**
 * The same noise process under another sampler (diffusers' `Class.from_config(other.config)`): keys that both classes have are kept, the rest are
 * the new class's defaults.
 */
export function convertSchedulerConfig(config: SchedulerConfig, className: SchedulerClass): SchedulerConfig {
  const from = [...COMMON, ...spec(config._class_name).keys];
  const to = [...COMMON, ...spec(className).keys];
  // Nobody chose the end of a class that knows only one.
  const chosen = (key: Key): boolean => key !== 'final_sigmas_type' || config[key] !== (spec(config._class_name).defaults?.[key] ?? DEFAULTS[key]);
  return parseSchedulerConfig({ ...Object.fromEntries(from.filter((key) => to.includes(key) && chosen(key)).map((key) => [key, config[key]])), _class_name: className }, `${config._class_name} as ${className}`);
}

/** The betas and their products, as diffusers' scheduler holds them. */
export function noiseTables(config: SchedulerConfig): NoiseTables {
  const named = config.trained_betas
    ? Float32Array.from(config.trained_betas)
    : makeBetas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end);
  if (!config.rescale_betas_zero_snr) return { betas: named, alphasCumprod: alphasCumprod(named) };
  const betas = rescaleZeroTerminalSnr(named);
  const bars = alphasCumprod(betas);
  // Samplers that count in sigma or log-SNR stay just short of the infinite ones.
  if (/^(Euler|DPMSolver|UniPC)/.test(config._class_name)) bars[bars.length - 1] = 2 ** -24;
  return { betas, alphasCumprod: bars };
}

/**
 * Compiles a configuration into the coefficient table of a whole trajectory.
 * @param config a scheduler_config.json: text, parsed object, or what {@link parseSchedulerConfig} returned.
 * @throws BruitError `config` for a bad configuration or options that the class does not take.
 */
export function createSampler(config: string | object, options: SamplerOptions): SamplerProgram {
  const parsed = parseSchedulerConfig(config);
  const { _class_name: name, num_train_timesteps: total } = parsed;
  const { build, stepKwargs = [] } = spec(name);
  const known = ['numInferenceSteps', 'begin', ...stepKwargs];
  for (const [key, value] of Object.entries(options))
    check(known.includes(key), 'config', () => `${name} does not take the option ${key} (value ${show(value)}); it takes: ${known.join(', ')}`);
  const { timesteps } = options;
  check(!timesteps || options.numInferenceSteps === undefined, 'config', () => 'give either numInferenceSteps or timesteps, not both');
  check(!timesteps || timesteps.every((t, i) => Number.isInteger(t) && t >= 0 && t < (i === 0 ? total : timesteps[i - 1]!)), 'config', () => `timesteps must be descending integers from 0 to ${total - 1}, got ${show(timesteps)}`);
  const numInferenceSteps = timesteps ? timesteps.length : options.numInferenceSteps!;
  check(count(1)[0](numInferenceSteps), 'config', () => `numInferenceSteps is ${show(numInferenceSteps)}; allowed: ${count(1)[1]}`);
  const program = build(parsed, noiseTables(parsed), { ...options, numInferenceSteps });
  check(program.steps.length > 0, 'config', () => `${name}: begin ${options.begin} leaves none of ${program.timesteps.length} steps`);
  return program;
}

/** Factors of (clean sample, standard normal noise) at each of the program's time steps: diffusers' `add_noise`, with which image to image starts. */
export function noiseLevels(config: SchedulerConfig, { timesteps, sigmas }: SamplerProgram): (readonly [signal: number, noise: number])[] {
  const inSigma = ['LMSDiscreteScheduler', 'HeunDiscreteScheduler', 'EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler'].includes(config._class_name);
  const { alphasCumprod: bars } = noiseTables(config);
  return timesteps.map((t, i) => (inSigma ? [1, sigmas![i]!] : [Math.sqrt(bars[t]!), Math.sqrt(1 - bars[t]!)]));
}
