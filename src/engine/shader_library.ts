/** The snippets that shaders include, by path under shaders/. */
import index from '../../shaders/lib/index.wgsl';
import lanes1 from '../../shaders/lib/lanes_1.wgsl';
import lanes4 from '../../shaders/lib/lanes_4.wgsl';
import log from '../../shaders/lib/log.wgsl';
import philox from '../../shaders/lib/philox.wgsl';
import pointwise from '../../shaders/lib/pointwise.wgsl';
import workgroup from '../../shaders/lib/workgroup.wgsl';
import matmulOperands from '../../shaders/lib/matmul_operands.wgsl';
import storeBlock1 from '../../shaders/lib/store_block_1.wgsl';
import storeBlock4 from '../../shaders/lib/store_block_4.wgsl';
import tile4x4 from '../../shaders/lib/tile_4x4.wgsl';
import tile8x8 from '../../shaders/lib/tile_8x8.wgsl';
import tile16x16 from '../../shaders/lib/tile_16x16.wgsl';

export const shaderLibrary: Readonly<Record<string, string>> = {
  'lib/index.wgsl': index,
  'lib/lanes_1.wgsl': lanes1,
  'lib/lanes_4.wgsl': lanes4,
  'lib/log.wgsl': log,
  'lib/philox.wgsl': philox,
  'lib/pointwise.wgsl': pointwise,
  'lib/workgroup.wgsl': workgroup,
  'lib/matmul_operands.wgsl': matmulOperands,
  'lib/store_block_1.wgsl': storeBlock1,
  'lib/store_block_4.wgsl': storeBlock4,
  'lib/tile_4x4.wgsl': tile4x4,
  'lib/tile_8x8.wgsl': tile8x8,
  'lib/tile_16x16.wgsl': tile16x16,
};
