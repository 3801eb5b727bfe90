/** How a product is laid out in subgroup matrices (shaders/lib/subgroup_matrix_tile.wgsl). */
import type { PackedFormat } from '../buffer_view';
import type { AdapterProfile, MatrixShape } from '../device';
import type { DType } from '../shape';

export interface MatrixTile {
  readonly rows: number;
  readonly columns: number;
  /** Terms that pass through workgroup memory at a time. */
  readonly stageK: number;
  readonly prologue: Readonly<Record<string, string>>;
}

export interface MatrixProduct {
  /** How the operands are stored. */
  readonly left: DType;
  readonly right: DType;
  readonly packed: PackedFormat | undefined;
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/**
 * Tiles of a product, from large to small, where it is computed in subgroup matrices: where that is forced or pays, if the adapter has them for these operands.
 * Fragments are f16 only where both operands are stored in it, as f16 or packed into words, so that nothing is rounded that the graph has in f32. Others need
 * f32 fragments.
 */
export function matrixTiles({ kind, subgroupMatrix, limits }: AdapterProfile, variant: string | undefined, { left, right, packed, m, n, k }: MatrixProduct): readonly MatrixTile[] | undefined {
  const forced = variant === 'subgroup_matrix';
  if (!subgroupMatrix || (!forced && (variant !== undefined || kind !== 'gpu'))) return undefined;
  const { lanes, shapes } = subgroupMatrix;
  const half = left === 'f16' && (packed ?? right) === 'f16';
  // Untuned, f16 alone, which hardware multiplies several times as fast as its lanes multiply f32 (f32 fragments often are those lanes), and not what is mostly edge.
  if (!forced && (!half || Math.min(m, n, k) < 32)) return undefined;
  for (const component of half ? (['f16', 'f32'] as const) : (['f32'] as const)) {
    for (const shape of shapes) {
      const tiles = shape.component === component ? [64, 32].flatMap((edge) => tileOf(edge, shape, lanes, limits) ?? []) : [];
      if (tiles.length) return forced || component === 'f16' ? tiles : undefined;
    }
  }
  return undefined;
}

/** Arrangements of a workgroup's subgroups. */
const arrangements = [[2, 2], [1, 2], [2, 1], [1, 1]] as const;

function tileOf(edge: number, { component, m, n, k }: MatrixShape, lanes: number, limits: AdapterProfile['limits']): MatrixTile | undefined {
  for (const [subgroupsM, subgroupsN] of arrangements) {
    const workgroup = subgroupsM * subgroupsN * lanes;
    if (workgroup > limits.maxComputeInvocationsPerWorkgroup || edge % (subgroupsM * m) || edge % (subgroupsN * n)) continue;
    for (const stageK of [32, 16]) {
      // As the shader's arrays are: A, B, and a row of fragments of every subgroup.
      const bytes = (component === 'f16' ? 2 : 4) * (edge * (stageK + 8) + stageK * (edge + 8)) + 4 * subgroupsM * m * (edge + 8);
      if (stageK % k || bytes > limits.maxComputeWorkgroupStorageSize) continue;
      const numbers = {
        FRAGMENT_M: m,
        FRAGMENT_N: n,
        FRAGMENT_K: k,
        FRAGMENTS_M: edge / (subgroupsM * m),
        FRAGMENTS_N: edge / (subgroupsN * n),
        SUBGROUPS_M: subgroupsM,
        SUBGROUPS_N: subgroupsN,
        LANES: workgroup,
        STAGE_K: stageK,
      };
      return { rows: edge, columns: edge, stageK, prologue: { Component: component, ...Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, `${value}u`])) } };
    }
  }
  return undefined;
}
