/** Losses and norms with PyTorch's definitions, in f32, composed of pointwise chains (one fused kernel) and fixed-order sums. */
import { check } from '../errors';
import type { Tensor } from '../graph';
import { sameShape, showShape } from '../shape';
import { abs, cast, clamp, mul, scale, sqrt, square, sub } from './pointwise';
import { reshape } from './reshape';
import { mean, total } from './sum';

/** `mean` over everything: [1]. `none`: the mean of each sample, [N], to be weighted by the caller. */
export type Reduction = 'mean' | 'none';

function difference(loss: string, prediction: Tensor, target: Tensor): Tensor {
  check(sameShape(prediction.shape, target.shape), 'shape', () => `${loss}: prediction ${showShape(prediction.shape)} and target ${showShape(target.shape)} must have the same shape`);
  return sub(cast(prediction, 'f32'), cast(target, 'f32'));
}

function reduce(values: Tensor, reduction: Reduction): Tensor {
  const n = values.shape[0] ?? 1;
  if (reduction === 'mean') return reshape(mean(values), [1]);
  return values.shape.length < 2 ? reshape(values, [n]) : reshape(mean(values, values.shape.map((_, i) => i).slice(1)), [n]);
}

/** (prediction − target)² (torch.nn.functional.mse_loss). */
export const mseLoss = (prediction: Tensor, target: Tensor, reduction: Reduction = 'mean'): Tensor => reduce(square(difference('mseLoss', prediction, target)), reduction);

/** |prediction − target| (torch.nn.functional.l1_loss). */
export const l1Loss = (prediction: Tensor, target: Tensor, reduction: Reduction = 'mean'): Tensor => reduce(abs(difference('l1Loss', prediction, target)), reduction);

/** d²/2 where |d| ≤ delta, else delta·(|d| − delta/2) (torch.nn.functional.huber_loss). */
export function huberLoss(prediction: Tensor, target: Tensor, delta = 1, reduction: Reduction = 'mean'): Tensor {
  check(delta > 0, 'input', () => `huberLoss: delta ${delta} must be above 0`);
  // With q = min(|d|, delta) both branches are q·(|d| − q/2).
  const distance = abs(difference('huberLoss', prediction, target));
  const q = clamp(distance, 0, delta);
  return reduce(mul(q, sub(distance, scale(q, 0.5))), reduction);
}

/** √Σx² over everything: [1]. Its gradient at x = 0 is not finite. */
export const norm = (x: Tensor): Tensor => sqrt(total(square(cast(x, 'f32'))));
