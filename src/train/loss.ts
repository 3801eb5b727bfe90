/** Diffusion training losses: noising, targets, min-SNR weights, and the hybrid loss for learned variances. All nodes of a graph. */
import type { Tensor } from '../engine/graph';
import { BruitError } from '../engine/errors';
import { slice } from '../engine/ops/copy';
import { huberLoss, l1Loss, mseLoss } from '../engine/ops/losses';
import { gatherRows } from '../engine/ops/gather_rows';
import { add, cast, clamp, detach, exp, less, log, mul, scale, shift, square, sub, tanh, where } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { mean } from '../engine/ops/sum';
import type { DiffusionProcess } from '../sampler/diffusion_process';
import type { PredictionType } from '../sampler/prediction';

export const lossKinds = ['mse', 'l1', 'huber'] as const;

export interface LossConfig {
  readonly predictionType: PredictionType;
  /** What is taken of the difference to the target: its square (default), its magnitude, or torch's Huber loss. */
  readonly kind?: (typeof lossKinds)[number];
  /** Where "huber" turns from the square's half to the magnitude (torch.nn.functional.huber_loss' delta); 1 by default. */
  readonly huberDelta?: number;
  /** min-SNR-γ (Hang et al. 2023): the loss of x0 is weighted by min(SNR, γ), that of ε by min(SNR, γ)/SNR, that of v by min(SNR, γ)/(SNR+1). */
  readonly minSnrGamma?: number;
  /** λ of L_simple + λ·L_vlb (Nichol & Dhariwal 2021, eq. 16); the model then predicts 2C channels. */
  readonly vlbWeight?: number;
}

/** Everything that depends on the time step alone, one row per time step, f64 on the host. */
const columns = ['signal', 'noise', 'targetX0', 'targetNoise', 'weight', 'x0FromXt', 'x0FromOutput', 'posteriorX0', 'posteriorXt', 'logVarianceMin', 'logVarianceMax', 'posteriorLogVariance'] as const;
type Column = (typeof columns)[number];

function minSnrWeight(type: PredictionType, snr: number, gamma: number | undefined): number {
  if (gamma === undefined) return 1;
  const clipped = Math.min(snr, gamma);
  if (type === 'sample') return clipped;
  if (type === 'v_prediction') return clipped / (snr + 1);
  return clipped / snr;
}

/** The rows of {@link columns} as an f32 table [T, columns]. */
export function lossTable(process: DiffusionProcess, config: LossConfig): Float32Array {
  const rows = Array.from({ length: process.numTrainTimesteps }, (_, t): Record<Column, number> => {
    const { signal, noise } = process.qSample(t);
    const target = process.target(config.predictionType, t);
    const weight = minSnrWeight(config.predictionType, process.snr(t), config.minSnrGamma);
    if (!Number.isFinite(weight)) throw new BruitError('config', `min-SNR weighting of ${config.predictionType} is undefined at time step ${t}, where the signal is zero; use prediction_type "v_prediction"`);
    const base = { signal, noise, targetX0: target.x0, targetNoise: target.epsilon, weight };
    if (config.vlbWeight === undefined) return { ...base, x0FromXt: 0, x0FromOutput: 0, posteriorX0: 0, posteriorXt: 0, logVarianceMin: 0, logVarianceMax: 0, posteriorLogVariance: 0 };
    const x0 = process.predictX0(config.predictionType, t);
    const posterior = process.posterior(t);
    const [low, high] = process.logVarianceBounds(t);
    return { ...base, x0FromXt: x0.xt, x0FromOutput: x0.output, posteriorX0: posterior.x0, posteriorXt: posterior.xt, logVarianceMin: low, logVarianceMax: high, posteriorLogVariance: process.posteriorLogVarianceClipped(t) };
  });
  return Float32Array.from(rows.flatMap((r) => columns.map((c) => r[c])));
}

/** Coefficients of a batch's time steps, each [N,1,1,1]. */
export class StepCoefficients {
  private readonly rows: Tensor;
  private readonly cache = new Map<Column, Tensor>();

  /** @param t time steps, u32 or i32 [N] */
  constructor(
    process: DiffusionProcess,
    config: LossConfig,
    readonly t: Tensor,
  ) {
    const table = lossTable(process, config);
    this.rows = gatherRows(t.graph.constant('loss_table', [process.numTrainTimesteps, columns.length], table), t);
  }

  get(column: Column): Tensor {
    let c = this.cache.get(column);
    if (!c) {
      c = reshape(slice(this.rows, 1, columns.indexOf(column), 1), [this.t.shape[0]!, 1, 1, 1]);
      this.cache.set(column, c);
    }
    return c;
  }
}

/** x_t = signal·x_0 + noise·ε (DDPM eq. 4). Images [N,C,H,W]. */
export const addNoise = (c: StepCoefficients, x0: Tensor, noise: Tensor): Tensor => add(mul(x0, c.get('signal')), mul(noise, c.get('noise')));

/** What the model is trained to return: ε, x0 or v, as a combination of x0 and the noise. */
export function lossTarget(c: StepCoefficients, config: LossConfig, x0: Tensor, noise: Tensor): Tensor {
  if (config.predictionType === 'epsilon') return noise;
  if (config.predictionType === 'sample') return x0;
  return add(mul(x0, c.get('targetX0')), mul(noise, c.get('targetNoise')));
}

export interface DiffusionLoss {
  /** Mean over the batch, [1]. */
  readonly loss: Tensor;
  /** [N] each. */
  readonly perSample: Tensor;
  /** Before any weight. */
  readonly simple: Tensor;
  readonly vlb: Tensor | undefined;
  readonly hybrid: HybridTerms | undefined;
}

export interface HybridTerms {
  readonly predX0: Tensor;
  readonly mean: Tensor;
  readonly logVariance: Tensor;
}

const flatMean = (x: Tensor): Tensor => reshape(mean(x, [1, 2, 3]), [x.shape[0]!]);

/** The training loss of a batch. `output` is [N,C,H,W], or [N,2C,H,W] where the variance is learned (its second half). */
export function diffusionLoss(c: StepCoefficients, config: LossConfig, { x0, noise, xt, output }: { x0: Tensor; noise: Tensor; xt: Tensor; output: Tensor }): DiffusionLoss {
  const channels = x0.shape[1]!;
  const learned = output.shape[1] === 2 * channels;
  if (!learned && output.shape[1] !== channels) throw new BruitError('shape', `the model returns ${output.shape[1]} channels for images of ${channels}: it must return ${channels}, or ${2 * channels} with a learned variance`);
  const prediction = learned ? slice(output, 1, 0, channels) : output;
  const target = lossTarget(c, config, x0, noise);
  const simple = config.kind === 'l1' ? l1Loss(prediction, target, 'none') : config.kind === 'huber' ? huberLoss(prediction, target, config.huberDelta, 'none') : mseLoss(prediction, target, 'none');
  const weighted = config.minSnrGamma === undefined ? simple : mul(simple, reshape(c.get('weight'), [-1]));
  if (config.vlbWeight === undefined) return { loss: reshape(mean(weighted), [1]), perSample: weighted, simple, vlb: undefined, hybrid: undefined };
  if (!learned) throw new BruitError('config', `the hybrid loss needs a model with ${2 * channels} output channels, this one has ${output.shape[1]}`);
  const { vlb, hybrid } = variationalBound(c, { x0, xt, prediction: detach(prediction), v: slice(output, 1, channels, channels) });
  const perSample = add(weighted, scale(vlb, config.vlbWeight));
  return { loss: reshape(mean(perSample), [1]), perSample, simple, vlb, hybrid };
}

/** Φ(x) by the tanh approximation that improved-diffusion uses. */
const normalCdf = (x: Tensor): Tensor => scale(shift(tanh(scale(add(x, scale(mul(square(x), x), 0.044715)), Math.sqrt(2 / Math.PI))), 1), 0.5);

/**
 * One term of the variational bound in bits per dimension (Nichol & Dhariwal 2021, section 3.1): KL between the true and the predicted
 * posterior, or at t = 0 the likelihood of 8-bit pixels under a discretised Gaussian. Its gradient reaches the variance only.
 */
function variationalBound(c: StepCoefficients, { x0, xt, prediction, v }: { x0: Tensor; xt: Tensor; prediction: Tensor; v: Tensor }): { vlb: Tensor; hybrid: HybridTerms } {
  const predX0 = add(mul(xt, c.get('x0FromXt')), mul(prediction, c.get('x0FromOutput')));
  const predMean = add(mul(predX0, c.get('posteriorX0')), mul(xt, c.get('posteriorXt')));
  // v in [-1, 1] mixes the two log-variances (eq. 15).
  const low = c.get('logVarianceMin');
  const fraction = scale(shift(v, 1), 0.5);
  const logVariance = add(low, mul(fraction, sub(c.get('logVarianceMax'), low)));
  // Both means share the x_t term, so their difference is taken before large numbers are added to it.
  const difference = mul(sub(x0, predX0), c.get('posteriorX0'));
  const trueLogVariance = c.get('posteriorLogVariance');
  const ratio = sub(trueLogVariance, logVariance);
  const kl = scale(sub(add(exp(ratio), mul(square(difference), exp(scale(logVariance, -1)))), shift(ratio, 1)), 0.5);

  const inverseStd = exp(scale(logVariance, -0.5));
  const upper = normalCdf(mul(shift(difference, 1 / 255), inverseStd));
  const lower = normalCdf(mul(shift(difference, -1 / 255), inverseStd));
  const safeLog = (p: Tensor) => log(clamp(p, 1e-12, 3e38));
  const constant = (value: number) => x0.graph.constant(`pixel${value}`, [1], Float32Array.of(value));
  const middle = safeLog(sub(upper, lower));
  const likelihood = where(less(x0, constant(-0.999)), safeLog(upper), where(less(constant(0.999), x0), safeLog(shift(scale(lower, -1), 1)), middle));
  const isFirst = less(reshape(cast(c.t, 'f32'), [-1, 1, 1, 1]), constant(0.5));
  const term = where(isFirst, scale(likelihood, -1), kl);
  return { vlb: scale(flatMean(term), 1 / Math.LN2), hybrid: { predX0, mean: predMean, logVariance } };
}
