/** A tensor in the reference layout. */
export interface BenchTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}
export interface Workload {
  readonly id: string;
  readonly kind: string;
  readonly name: string;
  readonly flops: number;
  /** Least traffic; absent for whole models. */
  readonly bytes?: number;
  inputs(): Record<string, BenchTensor>;
}
export interface WeightSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly init: { readonly kind: string; readonly value?: number; readonly fanIn?: number };
}
export const workloads: readonly Workload[];
export const otherWorkloads: readonly Workload[];
export function unetWeightValues(specs: readonly WeightSpec[]): { name: string; shape: readonly number[]; data: Float32Array }[];
