import splitSumShader from '../../../shaders/split_sum.wgsl';
import type { Bindable, DispatchSpec, TempTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel } from '../shape';

/** The dispatch that adds `count` partial results [count, …y's shape] (f32) into `y` in their order and applies the node's epilogue. */
export function splitSum(partials: TempTensor, y: Bindable, count: number): DispatchSpec {
  const width = y.shape[y.shape.length - 1]! % 4 === 0 ? 4 : 1;
  const size = numel(y.shape) / width;
  return {
    shader: { file: 'split_sum.wgsl', text: splitSumShader },
    entry: 'forward',
    prologue: { V: vectorType('f32', width), Y: vectorType(y.dtype, width), WIDTH: `${width}u` },
    bindings: { parts: partials, y },
    params: { count: size, parts: count, columns: y.shape[y.shape.length - 1]! },
    workgroups: Math.ceil(size / 64),
    epilogueWidth: width,
    cost: { flops: numel(y.shape) * count, bytes: numel(y.shape) * 4 * (count + 1) },
  };
}
