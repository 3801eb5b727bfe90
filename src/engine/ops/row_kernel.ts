import type { AdapterProfile } from '../device';

/** Kernels over rows: a workgroup per row on a GPU, unless rows are shorter than it; an invocation per row on a CPU, unless that leaves it idle. */
export function rowKernel(rows: number, columns: number, kind: AdapterProfile['kind'], variant: string | undefined): { entry: string; workgroups: number } {
  const tiled = kind === 'gpu' ? columns > 32 : rows < 16 && columns >= 4096;
  const entry = variant ?? (tiled ? 'tiled' : 'direct');
  return { entry, workgroups: entry === 'tiled' ? rows : Math.ceil(rows / 16) };
}
