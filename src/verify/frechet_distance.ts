/** Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017, "GANs trained by a two time-scale update rule…"), in f64. */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix';
import { check } from '../engine/errors';

/** Mean [D] and covariance [D,D] (row-major, n − 1 in the denominator) of a feature set. */
export interface Gaussian {
  readonly mean: Float64Array;
  readonly covariance: Float64Array;
}

/** Fits a Gaussian to `features` [N,width]. Fewer samples than dimensions give a singular covariance, which is fine. */
export function fitGaussian(features: ArrayLike<number>, width: number): Gaussian {
  const n = features.length / width;
  check(Number.isInteger(n) && n >= 2, 'input', () => `${features.length} numbers are no features of width ${width} of two samples or more`);
  const mean = new Float64Array(width);
  for (let i = 0; i < features.length; i++) mean[i % width]! += features[i]! / n;
  const covariance = new Float64Array(width * width);
  const centred = new Float64Array(width);
  for (let s = 0; s < n; s++) {
    for (let i = 0; i < width; i++) centred[i] = features[s * width + i]! - mean[i]!;
    for (let i = 0; i < width; i++) for (let j = 0; j <= i; j++) covariance[i * width + j]! += (centred[i]! * centred[j]!) / (n - 1);
  }
  for (let i = 0; i < width; i++) for (let j = 0; j < i; j++) covariance[j * width + i] = covariance[i * width + j]!;
  return { mean, covariance };
}

/** Eigenvalues of a covariance, rounding's small negative ones as 0, and its eigenvectors in columns. */
function eigen(symmetric: Matrix): { values: number[]; vectors: Matrix } {
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(symmetric, { assumeSymmetric: true });
  return { values: realEigenvalues.map((v) => Math.max(v, 0)), vectors: eigenvectorMatrix };
}

/**
 * |μa − μb|² + tr(Ca + Cb − 2·(Ca·Cb)^½).
 * Ca·Cb has the eigenvalues of the symmetric Ca^½·Cb·Ca^½, so the trace of its root is a sum of real square roots, singular or not.
 */
export function frechetDistance(a: Gaussian, b: Gaussian): number {
  const width = a.mean.length;
  check(b.mean.length === width, 'shape', () => `features of width ${width} and ${b.mean.length} cannot be compared`);
  const matrix = (g: Gaussian) => Matrix.from1DArray(width, width, Array.from(g.covariance));
  const [ca, cb] = [matrix(a), matrix(b)];
  const { values, vectors } = eigen(ca);
  const root = vectors.mmul(Matrix.diag(values.map(Math.sqrt))).mmul(vectors.transpose());
  const product = root.mmul(cb).mmul(root);
  const symmetric = Matrix.add(product, product.transpose()).mul(0.5);
  const overlap = eigen(symmetric).values.reduce((sum, v) => sum + Math.sqrt(v), 0);
  const shift = a.mean.reduce((sum, m, i) => sum + (m - b.mean[i]!) ** 2, 0);
  return shift + ca.trace() + cb.trace() - 2 * overlap;
}
