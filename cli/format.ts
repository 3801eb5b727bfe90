import type { StorageReport } from '../src/model/weight_error';

/** `1.3 MB`, in powers of ten as disks are sold. */
export function showBytes(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  const power = Math.min(4, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1000 ** power).toPrecision(3)} ${['', 'k', 'M', 'G', 'T'][power]}B`;
}

/** A few significant digits, never more than nine characters: `-1.234`, `1.23e-8`. */
export function showNumber(x: number): string {
  if (x === 0 || !Number.isFinite(x)) return String(x);
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(2) : String(Number(x.toPrecision(4)));
}

export const showInteger = (n: number): string => n.toLocaleString('en-US');

/** Memory of each kind of weights, and what rounding them cost. */
export const showStorage = (report: readonly StorageReport[]): string =>
  report
    .map(({ layout, format, tensors, bytes, maxError, rmsError, rms }) => `${tensors} ${layout} weights as ${format}: ${showBytes(bytes)}${maxError ? `, rounded by at most ${maxError.toPrecision(3)}, by ${((100 * rmsError) / rms).toPrecision(2)} % (rms)` : ''}`)
    .join('\n');
