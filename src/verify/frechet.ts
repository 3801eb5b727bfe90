/** Fréchet distances of `case.json`: `cases` by name, each with two sets of features and what their Gaussians give. */
import { isJsonObject } from '../io/json';
import { fitGaussian, frechetDistance } from './frechet_distance';
import { type CaseReport } from './report';

interface FrechetCase {
  readonly features_a: readonly (readonly number[])[];
  readonly features_b: readonly (readonly number[])[];
  readonly frechet_distance: number;
  readonly [statistic: string]: unknown;
}

export interface FrechetCases {
  readonly cases: Readonly<Record<string, FrechetCase>>;
}

export const isFrechetCases = (json: unknown): json is FrechetCases =>
  isJsonObject(json) && isJsonObject(json.cases) && Object.values(json.cases).every((c) => isJsonObject(c) && Array.isArray(c.features_a) && Array.isArray(c.features_b) && typeof c.frechet_distance === 'number');

/** Computed on the host, in float64. Roots of covariances that are nearly singular keep half of its digits. */
export function verifyFrechet(report: CaseReport, { cases }: FrechetCases, file: string): void {
  report.kinds.push('Fréchet distances');
  for (const [name, c] of Object.entries(cases)) {
    const width = c.features_a[0]!.length;
    const [a, b] = [fitGaussian(c.features_a.flat(), width), fitGaussian(c.features_b.flat(), width)];
    const compare = (key: string, actual: readonly number[] | Float64Array, shape: readonly number[], relative: number): void => {
      if (c[key] === undefined) return;
      const expected = [c[key]].flat(2) as number[];
      report.compareNumbers({ file, name: `${name}.${key}`, shape, data: Float64Array.from(actual), path: ['cases', name, key] }, expected, (largest) => relative * largest);
    };
    compare('mean_a', a.mean, [width], 1e-12);
    compare('mean_b', b.mean, [width], 1e-12);
    compare('cov_a', a.covariance, [width, width], 1e-12);
    compare('cov_b', b.covariance, [width, width], 1e-12);
    compare('frechet_distance', [frechetDistance(a, b)], [], 1e-6);
  }
}
