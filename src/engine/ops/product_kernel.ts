import type { AdapterProfile } from '../device';

/**
 * Kernels that matrix products come in: `direct` (registers alone), `tiled` (workgroup memory, for GPUs), and for software adapters two
 * that pass operands between the lanes of a subgroup, each for one subgroup size and what loads cost there. Where the adapter has subgroup
 * matrices, `subgroup_matrix` comes before these (subgroup_matrix.ts).
 */
export type KernelName = 'direct' | 'broadcast' | 'subgroup' | 'tiled';

/** Variants of products; `tiled_small` is `tiled` with its smallest tile, which the tuner may prefer to what the cost model takes. */
export const productVariants = ['direct', 'broadcast', 'subgroup', 'tiled', 'tiled_small', 'subgroup_matrix'] as const;

const subgroupLanes: Partial<Record<KernelName, number>> = { broadcast: 4, subgroup: 8 };

/** The forced kernel or the adapter's best for a product of `columns` columns; kernels for subgroups take `worth` columns or more to pay. */
export function kernelFor({ kind, subgroupSize }: AdapterProfile, forced: string | undefined, columns: number, worth: number): KernelName {
  const own = forced === 'subgroup_matrix' ? undefined : forced;
  const forSubgroups = (Object.keys(subgroupLanes) as KernelName[]).find((name) => subgroupLanes[name] === subgroupSize);
  const name = (forced === 'tiled_small' ? 'tiled' : own ?? (kind === 'gpu' ? 'tiled' : columns >= worth && forSubgroups ? forSubgroups : 'direct')) as KernelName;
  return subgroupLanes[name] === undefined || subgroupLanes[name] === subgroupSize ? name : 'direct';
}

/**
 * The tiles of a `subgroup` kernel that pay. Up to Mesa 25 llvmpipe makes of each load a branch for every lane and component: with the loads of 64 rows the loop
 * outgrows a core's instruction caches (a product of 512x512x512 takes 1.2 times as long as with 32) and takes 2 s to compile. In Mesa 26 it takes 0.85 of the time.
 * The version is in the adapter's description; where a browser keeps that to itself, tiles have 32 rows.
 */
export function subgroupTiles<T extends { readonly rows: number }>(tiles: readonly T[], { name }: AdapterProfile): readonly T[] {
  return Number(/\bMesa (\d+)/.exec(name)?.[1] ?? 0) >= 26 ? tiles : tiles.filter(({ rows }) => rows <= 32);
}
