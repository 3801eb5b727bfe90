/** The snippets that shaders include, by path under shaders/. */
import attention from '../../shaders/lib/attention.wgsl';
import attentionDout from '../../shaders/lib/attention_dout.wgsl';
import attentionGradStore from '../../shaders/lib/attention_grad_store.wgsl';
import attentionMask from '../../shaders/lib/attention_mask.wgsl';
import attentionNoMask from '../../shaders/lib/attention_no_mask.wgsl';
import attentionStore from '../../shaders/lib/attention_store.wgsl';
import index from '../../shaders/lib/index.wgsl';
import indexOfSlice from '../../shaders/lib/index_of_slice.wgsl';
import elements from '../../shaders/lib/elements.wgsl';
import lanes1 from '../../shaders/lib/lanes_1.wgsl';
import lanes4 from '../../shaders/lib/lanes_4.wgsl';
import log from '../../shaders/lib/log.wgsl';
import philox from '../../shaders/lib/philox.wgsl';
import pointwise from '../../shaders/lib/pointwise.wgsl';
import workgroup from '../../shaders/lib/workgroup.wgsl';
import matmulOperands from '../../shaders/lib/matmul_operands.wgsl';
import conv2dOperands from '../../shaders/lib/conv2d_operands.wgsl';
import conv2dGradWeightOperands from '../../shaders/lib/conv2d_grad_weight_operands.wgsl';
import cutColumns from '../../shaders/lib/cut_columns.wgsl';
import attentionBroadcast from '../../shaders/lib/attention_broadcast.wgsl';
import blockTile from '../../shaders/lib/block_tile.wgsl';
import addOuter from '../../shaders/lib/add_outer.wgsl';
import broadcastStore from '../../shaders/lib/broadcast_store.wgsl';
import broadcastTile from '../../shaders/lib/broadcast_tile.wgsl';
import subgroupTile from '../../shaders/lib/subgroup_tile.wgsl';
import storeRow1 from '../../shaders/lib/store_row_1.wgsl';
import storeRow4 from '../../shaders/lib/store_row_4.wgsl';
import storeBlock1 from '../../shaders/lib/store_block_1.wgsl';
import storeBlock4 from '../../shaders/lib/store_block_4.wgsl';
import tile4x4 from '../../shaders/lib/tile_4x4.wgsl';
import unpackBf16 from '../../shaders/lib/unpack_bf16.wgsl';
import unpackF16 from '../../shaders/lib/unpack_f16.wgsl';
import unpackInt4 from '../../shaders/lib/unpack_int4.wgsl';
import unpackInt8 from '../../shaders/lib/unpack_int8.wgsl';
import weights from '../../shaders/lib/weights.wgsl';
import weightsBlocks from '../../shaders/lib/weights_blocks.wgsl';
import weightsHalf from '../../shaders/lib/weights_half.wgsl';
import weightsTransposed from '../../shaders/lib/weights_transposed.wgsl';
import subgroupMatrixTile from '../../shaders/lib/subgroup_matrix_tile.wgsl';
import tile8x8 from '../../shaders/lib/tile_8x8.wgsl';

export const shaderLibrary: Readonly<Record<string, string>> = {
  'lib/attention.wgsl': attention,
  'lib/attention_dout.wgsl': attentionDout,
  'lib/attention_grad_store.wgsl': attentionGradStore,
  'lib/attention_mask.wgsl': attentionMask,
  'lib/attention_no_mask.wgsl': attentionNoMask,
  'lib/attention_store.wgsl': attentionStore,
  'lib/elements.wgsl': elements,
  'lib/index.wgsl': index,
  'lib/index_of_slice.wgsl': indexOfSlice,
  'lib/lanes_1.wgsl': lanes1,
  'lib/lanes_4.wgsl': lanes4,
  'lib/log.wgsl': log,
  'lib/philox.wgsl': philox,
  'lib/pointwise.wgsl': pointwise,
  'lib/workgroup.wgsl': workgroup,
  'lib/matmul_operands.wgsl': matmulOperands,
  'lib/conv2d_operands.wgsl': conv2dOperands,
  'lib/conv2d_grad_weight_operands.wgsl': conv2dGradWeightOperands,
  'lib/cut_columns.wgsl': cutColumns,
  'lib/attention_broadcast.wgsl': attentionBroadcast,
  'lib/add_outer.wgsl': addOuter,
  'lib/block_tile.wgsl': blockTile,
  'lib/broadcast_store.wgsl': broadcastStore,
  'lib/broadcast_tile.wgsl': broadcastTile,
  'lib/subgroup_tile.wgsl': subgroupTile,
  'lib/subgroup_matrix_tile.wgsl': subgroupMatrixTile,
  'lib/store_row_1.wgsl': storeRow1,
  'lib/store_row_4.wgsl': storeRow4,
  'lib/store_block_1.wgsl': storeBlock1,
  'lib/store_block_4.wgsl': storeBlock4,
  'lib/tile_4x4.wgsl': tile4x4,
  'lib/tile_8x8.wgsl': tile8x8,
  'lib/unpack_bf16.wgsl': unpackBf16,
  'lib/unpack_f16.wgsl': unpackF16,
  'lib/unpack_int4.wgsl': unpackInt4,
  'lib/unpack_int8.wgsl': unpackInt8,
  'lib/weights.wgsl': weights,
  'lib/weights_blocks.wgsl': weightsBlocks,
  'lib/weights_half.wgsl': weightsHalf,
  'lib/weights_transposed.wgsl': weightsTransposed,
};
