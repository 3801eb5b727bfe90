/** What storing weights in another format than the checkpoint's costs. */
import type { WeightLayout } from './parameters';
import type { WeightFormat } from './weight_format';

/** Sums over weights: largest |stored − given|, squares of that, and squares of what was given. */
export interface WeightError {
  readonly max: number;
  readonly squares: number;
  readonly given: number;
}

export function weightError(given: Float32Array, stored: Float32Array): WeightError {
  let [max, squares, sum] = [0, 0, 0];
  for (let i = 0; i < given.length; i++) {
    const d = Math.abs(stored[i]! - given[i]!);
    max = Math.max(max, d);
    squares += d * d;
    sum += given[i]! * given[i]!;
  }
  return { max, squares, given: sum };
}

/** All weights of one kind that are stored in one format. */
export interface StorageReport {
  readonly layout: WeightLayout;
  readonly format: WeightFormat;
  readonly tensors: number;
  readonly weights: number;
  /** In GPU memory. */
  readonly bytes: number;
  /** Of the difference to the checkpoint's numbers: largest magnitude and root mean square; 0 where the format is the checkpoint's, or wider. */
  readonly maxError: number;
  readonly rmsError: number;
  /** Root mean square of the checkpoint's numbers where they were rounded, to compare the errors with; 0 elsewhere. */
  readonly rms: number;
}

export interface StoredWeight extends Pick<StorageReport, 'layout' | 'format' | 'weights' | 'bytes'> {
  readonly errors: readonly WeightError[];
}

export function storageReport(all: readonly StoredWeight[]): StorageReport[] {
  const groups = new Map<string, StoredWeight[]>();
  for (const w of all) groups.set(`${w.layout} ${w.format}`, [...(groups.get(`${w.layout} ${w.format}`) ?? []), w]);
  return [...groups.values()].map((group) => {
    const sum = (of: (w: StoredWeight) => number) => group.reduce((n, w) => n + of(w), 0);
    const weights = sum((w) => w.weights);
    const errors = group.flatMap((w) => w.errors);
    return {
      layout: group[0]!.layout,
      format: group[0]!.format,
      tensors: group.length,
      weights,
      bytes: sum((w) => w.bytes),
      maxError: errors.reduce((m, e) => Math.max(m, e.max), 0),
      rmsError: Math.sqrt(errors.reduce((n, e) => n + e.squares, 0) / weights),
      rms: Math.sqrt(errors.reduce((n, e) => n + e.given, 0) / weights),
    };
  });
}
