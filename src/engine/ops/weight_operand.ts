import type { PackedFormat } from '../buffer_view';
import type { DispatchSpec } from '../op';
import { vectorType } from '../pointwise_codegen';
import type { DType } from '../shape';

export interface WeightOperand {
  readonly dtype: DType;
  /** How it is packed, if it is. */
  readonly packed: PackedFormat | undefined;
  /** Rows as stored are divisible by 4. */
  readonly even: boolean;
  /** The kernel reads four neighbours at a time where rows allow. */
  readonly wide: boolean;
  /** Stored transposed; plain elements only. */
  readonly transposed?: boolean;
}

/** Prologue values and includes of a shader that reads `w` through lib/weights.wgsl. */
export function weightOperand({ dtype, packed, even, wide, transposed = false }: WeightOperand): Required<Pick<DispatchSpec, 'prologue' | 'includes'>> {
  const both = wide && even;
  if (!packed) return { prologue: { W: vectorType(dtype, both ? 4 : 1), W4: vectorType(dtype, 4), W_WIDE: both }, includes: transposed ? { [plain]: 'lib/weights_transposed.wgsl' } : {} };
  if (packed === 'int8' || packed === 'int4') return { prologue: {}, includes: { [plain]: 'lib/weights_blocks.wgsl', 'lib/unpack_int8.wgsl': `lib/unpack_${packed}.wgsl` } };
  return { prologue: { W: both ? 'vec2<u32>' : 'u32', W_WIDE: both, W_EVEN: even }, includes: { [plain]: 'lib/weights_half.wgsl', 'lib/unpack_f16.wgsl': `lib/unpack_${packed}.wgsl` } };
}

const plain = 'lib/weights.wgsl';
