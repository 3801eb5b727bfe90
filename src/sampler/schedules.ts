/**
 * Noise schedules: betas, the products and sigmas that follow from them, and the time steps that a sampler visits.
 *
 * diffusers and PyTorch keep these tables in float32, and the differences that samplers take of them (1 - alphas_cumprod near t = 0, where it is
 * 1e-4) magnify that rounding far above what a sampler is compared at. So each table here is rounded where torch rounds it; everything computed from
 * the tables afterwards is f64.
 */
import { check } from '../engine/errors';

const f32 = Math.fround;

export type BetaSchedule = 'linear' | 'scaled_linear' | 'squaredcos_cap_v2' | 'sigmoid' | 'exp';
export type TimestepSpacing = 'leading' | 'trailing' | 'linspace';

/**
 * torch.linspace in float32 on a CPU, to the last bit: from both ends towards the middle, in blocks of 8 lanes that add up from a rounded first value,
 * blocks in pairs, what is left over one by one.
 */
export function linspaceF32(start: number, end: number, count: number): Float32Array {
  const [from, to] = [f32(start), f32(end)];
  const step = f32(f32(to - from) / (count - 1));
  const at = (i: number): number => f32(i < Math.floor(count / 2) ? from + step * i : to - step * (count - 1 - i));
  const paired = count - (count % 16);
  return Float32Array.from({ length: count }, (_, i) => (count === 1 ? from : i < paired ? at(i - (i % 8)) + step * (i % 8) : at(i)));
}

/** numpy.linspace: f64, the last value exact. */
export function linspace(start: number, end: number, count: number): Float64Array {
  const step = (end - start) / (count - 1);
  return Float64Array.from({ length: count }, (_, i) => (count === 1 ? start : i === count - 1 ? end : i * step + start));
}

/** Round to nearest, halves to even, as numpy and torch do. */
export function roundHalfEven(value: number): number {
  const down = Math.floor(value);
  const rest = value - down;
  return rest < 0.5 ? down : rest > 0.5 ? down + 1 : down % 2 === 0 ? down : down + 1;
}

/** Betas whose product follows `alphaBar(t)`, t in [0, 1], each at most `maxBeta`. Unrounded f64. */
export function betasForAlphaBar(count: number, alphaBar: (t: number) => number, maxBeta = 0.999): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => Math.min(1 - alphaBar((i + 1) / count) / alphaBar(i / count), maxBeta));
}

/** Cosine schedule, Improved DDPM (Nichol and Dhariwal 2021) eq. 17, in f64. */
export function cosineBetas(count: number): Float64Array {
  return betasForAlphaBar(count, (t) => Math.cos((((t + 0.008) / 1.008) * Math.PI) / 2) ** 2);
}

/** The betas of one of diffusers' named schedules, float32 values. */
export function makeBetas(schedule: BetaSchedule, count: number, betaStart: number, betaEnd: number): Float32Array {
  switch (schedule) {
    case 'linear': // beta_t = beta_min + t/T (beta_max - beta_min): DDPM, section 4
      return linspaceF32(betaStart, betaEnd, count);
    case 'scaled_linear': // linear in sqrt(beta): latent diffusion
      return linspaceF32(Math.sqrt(betaStart), Math.sqrt(betaEnd), count).map((b) => b * b);
    case 'squaredcos_cap_v2':
      return Float32Array.from(cosineBetas(count));
    case 'exp':
      return Float32Array.from(betasForAlphaBar(count, (t) => Math.exp(-12 * t)));
    case 'sigmoid': {
      const [scale, shift] = [f32(betaEnd - betaStart), f32(betaStart)];
      return linspaceF32(-6, 6, count).map((x) => f32(f32(1 / (1 + Math.exp(-x))) * scale) + shift);
    }
  }
}

/** alphas_cumprod_t = product of (1 - beta_s), s <= t. Like torch.cumprod: a running product in f64, each result rounded to float32. */
export function alphasCumprod(betas: ArrayLike<number>): Float32Array {
  let product = 1;
  return Float32Array.from(betas, (beta) => (product *= f32(1 - beta)));
}

/**
 * Shifts and scales sqrt(alphas_cumprod) so that the last is 0 and the first stays: "Common Diffusion Noise Schedules and Sample Steps are Flawed"
 * (Lin et al. 2023), algorithm 1.
 */
export function rescaleZeroTerminalSnr(betas: ArrayLike<number>): Float32Array {
  const root = alphasCumprod(betas).map(Math.sqrt);
  const [first, last] = [root[0]!, root[root.length - 1]!];
  const scale = f32(first / f32(first - last));
  const bar = root.map((r) => f32(f32(r - last) * scale) ** 2);
  return bar.map((value, t) => 1 - (t === 0 ? value : f32(value / bar[t - 1]!)));
}

/** sigma_t = sqrt((1 - alphas_cumprod) / alphas_cumprod) of the variance-exploding view (Karras et al. 2022), float32 values. */
export function sigmasOf(cumprod: Float32Array): Float32Array {
  return cumprod.map((a) => Math.sqrt(f32(f32(1 - a) / a)));
}

/** Karras et al. 2022, eq. 5 with rho = 7: `count` sigmas from `first` to `last`, evenly spaced in sigma^(1/7). f64. */
export function karrasSigmas(first: number, last: number, count: number): Float64Array {
  const rho = 7;
  const [a, b] = [first ** (1 / rho), last ** (1 / rho)];
  return linspace(0, 1, count).map((ramp) => (a + ramp * (b - a)) ** rho);
}

/** `count` sigmas from `first` to `last`, evenly spaced in their logarithm. f64. */
export const exponentialSigmas = (first: number, last: number, count: number): Float64Array => linspace(Math.log(first), Math.log(last), count).map(Math.exp);

/** Linear interpolation of a table at a fractional index, clamped at its ends (numpy.interp over 0, 1, 2, ...). */
export function interpolate(table: ArrayLike<number>, at: number): number {
  const index = Math.min(Math.max(at, 0), table.length - 1);
  const low = Math.floor(index);
  const high = Math.min(low + 1, table.length - 1);
  return (table[high]! - table[low]!) * (index - low) + table[low]!;
}

/** The fractional time step whose log-sigma, interpolated in `logSigmas` (float32, ascending), is log(sigma); the weight is float32 as in numpy. */
export function sigmaToTimestep(sigma: number, logSigmas: Float32Array): number {
  const log = f32(Math.log(sigma));
  let low = 0;
  for (let i = 0; i < logSigmas.length; i++) if (log >= logSigmas[i]!) low = i;
  low = Math.max(Math.min(low, logSigmas.length - 2), 0);
  const [a, b] = [logSigmas[low]!, logSigmas[low + 1] ?? logSigmas[low]!];
  if (a === b) return low;
  const weight = Math.min(Math.max(f32(f32(a - log) / f32(a - b)), 0), 1);
  return f32(1 - weight) * low + weight * (low + 1);
}

/**
 * numpy.round(numpy.arange(end, 0, -end'/count)) - 1 with end' = `total`: the "trailing" spacing, descending. numpy steps by (end - step) - end, which
 * is not always step. Where rounding makes arange yield a last value near 0, that point (time step -1, of no meaning) is left out.
 */
export function trailingTimesteps(total: number, count: number, end = total): number[] {
  const step = total / count;
  const delta = end - step - end;
  return Array.from({ length: Math.ceil(end / step) }, (_, i) => roundHalfEven(end + i * delta) - 1).filter((t) => t >= 0);
}

/**
 * Time steps, descending, of the samplers that divide [0, T) into `count` parts ("Common Diffusion Noise Schedules…", table 2).
 * @param rounded linspace only: integers (DDPM, DDIM, PNDM) or float32 fractions (those that work on sigmas).
 * @throws BruitError `config` where a time step would fall outside the schedule, but for fractions.
 */
export function spacedTimesteps(spacing: TimestepSpacing, total: number, count: number, offset: number, rounded: boolean): number[] {
  if (spacing === 'linspace') return Array.from(linspace(0, total - 1, count), (t) => (rounded ? roundHalfEven(t) : f32(t))).reverse();
  checkStepCount(total, count);
  if (spacing === 'trailing') return trailingTimesteps(total, count);
  // Sigmas are interpolated, and beyond the table its last; tables indexed by time steps have nothing there.
  return leading(Math.floor(total / count), count, offset, rounded ? total : Infinity);
}

/**
 * Time steps, descending, of the multi-step solvers (DPM-Solver, UniPC), which count one point more and leave out the last, t = 0 or near it; equal
 * neighbours are dropped. `end` is the number of usable time steps (less than `total` when lambda_min_clipped cuts).
 * @throws BruitError `config` where a time step would fall outside the schedule.
 */
export function solverTimesteps(spacing: TimestepSpacing, total: number, count: number, offset: number, end = total): number[] {
  let steps: number[];
  if (spacing === 'linspace') steps = Array.from(linspace(0, end - 1, count + 1), roundHalfEven).reverse().slice(0, -1);
  else if (spacing === 'trailing') {
    checkStepCount(total, count);
    steps = trailingTimesteps(total, count, end);
  } else {
    checkStepCount(end, count + 1);
    steps = leading(Math.floor(end / (count + 1)), count + 1, offset, total).slice(0, -1);
  }
  return [...new Set(steps)];
}

function leading(ratio: number, count: number, offset: number, total: number): number[] {
  const steps = Array.from({ length: count }, (_, i) => (count - 1 - i) * ratio + offset);
  check(steps[0]! < total && offset >= 0, 'config', () => `steps_offset ${offset} moves the first timestep to ${steps[0]}, outside 0..${total - 1}; use a smaller steps_offset or fewer steps`);
  return steps;
}

function checkStepCount(total: number, count: number): void {
  check(count <= total, 'config', () => `${count} inference steps are more than this timestep_spacing can place in num_train_timesteps ${total}; use fewer steps`);
}
