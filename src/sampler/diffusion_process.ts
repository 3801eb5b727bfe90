/**
 * The forward (noising) process of DDPM and what follows from it, in f64 on the host. "DDPM" is Ho et al. 2020, "Improved DDPM" Nichol and Dhariwal
 * 2021. Time steps count from 0, so alphaBar(t) is the papers' alpha-bar_{t+1}; alphaBar(-1) = 1 is the clean image.
 */
import { check } from '../engine/errors';
import { predict, type PredictionType } from './prediction';

/** A Gaussian whose mean is `x0` * x_0 + `xt` * x_t. */
export interface PosteriorCoefficients {
  readonly x0: number;
  readonly xt: number;
  readonly variance: number;
}

/** x_t = signal * x_source + noise * epsilon. */
export interface NoisingCoefficients {
  readonly signal: number;
  readonly noise: number;
}

export class DiffusionProcess {
  readonly numTrainTimesteps: number;
  private readonly cumprod: Float64Array;

  /**
   * @param betas variances of the single steps, each in (0, 1].
   * @param alphasCumprod their running products if these are held elsewhere (diffusers rounds them to float32); computed in f64 otherwise.
   */
  constructor(
    readonly betas: ArrayLike<number>,
    alphasCumprod?: ArrayLike<number>,
  ) {
    let product = 1;
    this.cumprod = Float64Array.from(alphasCumprod ?? Array.from(betas, (beta) => (product *= 1 - beta)));
    this.numTrainTimesteps = betas.length;
    check(this.cumprod.length === betas.length, 'config', () => `${this.cumprod.length} alphasCumprod for ${betas.length} betas`);
  }

  /** alpha-bar_t = product of alpha_s, s <= t: DDPM, above eq. 4. */
  alphaBar(t: number): number {
    check(Number.isInteger(t) && t >= -1 && t < this.numTrainTimesteps, 'input', () => `timestep ${t} is not an integer from -1 to ${this.numTrainTimesteps - 1}`);
    return t < 0 ? 1 : this.cumprod[t]!;
  }

  /** Variance of the step from `previous` to t: 1 - alphaBar(t) / alphaBar(previous); beta_t for neighbours. */
  beta(t: number, previous = t - 1): number {
    return previous === t - 1 ? this.betas[t]! : 1 - this.alphaBar(t) / this.alphaBar(previous);
  }

  /** q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t): DDPM eq. 2. `noise` is the standard deviation. */
  qStep(t: number, previous = t - 1): NoisingCoefficients {
    const beta = this.beta(t, previous);
    return { signal: Math.sqrt(1 - beta), noise: Math.sqrt(beta) };
  }

  /** q(x_t | x_0) = N(sqrt(alphaBar_t) x_0, 1 - alphaBar_t): DDPM eq. 4. `noise` is the standard deviation. */
  qSample(t: number): NoisingCoefficients {
    const alphaBar = this.alphaBar(t);
    return { signal: Math.sqrt(alphaBar), noise: Math.sqrt(1 - alphaBar) };
  }

  /** beta-tilde_t, the variance of q(x_previous | x_t, x_0): DDPM eq. 7. 0 when `previous` is the clean image. */
  betaTilde(t: number, previous = t - 1): number {
    return ((1 - this.alphaBar(previous)) / (1 - this.alphaBar(t))) * this.beta(t, previous);
  }

  /** q(x_previous | x_t, x_0): DDPM eq. 6 and 7. */
  posterior(t: number, previous = t - 1): PosteriorCoefficients {
    const [bar, barPrevious, beta] = [this.alphaBar(t), this.alphaBar(previous), this.beta(t, previous)];
    return {
      x0: (Math.sqrt(barPrevious) * beta) / (1 - bar),
      xt: (Math.sqrt(1 - beta) * (1 - barPrevious)) / (1 - bar),
      variance: this.betaTilde(t, previous),
    };
  }

  /** Signal-to-noise ratio alphaBar / (1 - alphaBar). */
  snr(t: number): number {
    return this.alphaBar(t) / (1 - this.alphaBar(t));
  }

  /**
   * log beta-tilde_t, with that of t = 1 at t = 0 where beta-tilde is 0: Improved DDPM's "posterior_log_variance_clipped".
   */
  posteriorLogVarianceClipped(t: number): number {
    return Math.log(this.betaTilde(Math.max(t, Math.min(1, this.numTrainTimesteps - 1))));
  }

  /** log beta-tilde_t and log beta_t: a model that learns its variance predicts v in [-1, 1] between them, Improved DDPM eq. 15. */
  logVarianceBounds(t: number): readonly [min: number, max: number] {
    return [this.posteriorLogVarianceClipped(t), Math.log(this.beta(t))];
  }

  /** Coefficients of (x_t, model output) that give the predicted x_0: DDPM eq. 15 for epsilon. */
  predictX0(type: PredictionType, t: number): { readonly xt: number; readonly output: number } {
    const [xt, output] = predict(type, this.alphaBar(t)).x0;
    return { xt: xt!, output: output! };
  }

  /** Coefficients of (x_0, epsilon) of what a model of this prediction type is trained to return. */
  target(type: PredictionType, t: number): { readonly x0: number; readonly epsilon: number } {
    const { signal, noise } = this.qSample(t);
    if (type === 'v_prediction') return { x0: -noise, epsilon: signal };
    return type === 'sample' ? { x0: 1, epsilon: 0 } : { x0: 0, epsilon: 1 };
  }
}
