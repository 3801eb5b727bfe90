import type { Tensor } from '../graph';
import { constantVector, rowNorm, rowNormTests } from './layer_norm';

const rms = rowNorm({
  name: 'rms_norm',
  doc: 'γ·x/√(mean(x²) + eps) + β over the last axis (Zhang & Sennrich 2019; T5 and Llama have no β). x […,C], γ and β [C]. Statistics in f32.',
  gradDoc: '(dx, dgamma, dbeta), or (dx) alone, of rms_norm from (x, gamma, beta, dy): with x̂ = x·rstd, dγ = Σ dy·x̂, dβ = Σ dy, dx = rstd·(γ·dy − x̂·mean(γ·dy·x̂)).',
  centered: false,
});
export const { op: rmsNormOp, gradOp: rmsNormGradOp } = rms;

/** RMSNorm over the last axis of `x` […,C] with `gamma` [C]. */
export function rmsNorm(x: Tensor, gamma: Tensor, { eps = 1e-6 }: { eps?: number } = {}): Tensor {
  return x.graph.add1(rmsNormOp, [x, gamma, constantVector(x, 'zeros', 0)], { eps });
}

export const tests = rowNormTests(rms, false);
