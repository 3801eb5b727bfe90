// C = A·B without workgroup memory: each invocation reads 4x4 blocks of A and B from storage and multiplies them in registers.
// For adapters on which an invocation is a lane of the CPU's vectors and a barrier is dear. Entry points by what an invocation computes:
// `forward` 16x8 of C (few loads for each product), `narrow` 8x4, for small problems and few columns.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

fn tile_row(m: u32) -> u32 {
  return m;
}

// include lib/block_tile.wgsl

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * 8u + lane, 16u, 8u);
  if (tile.w == 0u) {
    return;
  }
  for (var k = tile.z; k < tile.w; k += 4u) {
    let b0 = read_block_b(k, tile.y);
    let b1 = read_block_b(k, tile.y + 4u);
    let a0 = read_block_a(tile.x, k);
    c00 += b0 * a0;
    c01 += b1 * a0;
    let a1 = read_block_a(tile.x + 4u, k);
    c10 += b0 * a1;
    c11 += b1 * a1;
    let a2 = read_block_a(tile.x + 8u, k);
    c20 += b0 * a2;
    c21 += b1 * a2;
    let a3 = read_block_a(tile.x + 12u, k);
    c30 += b0 * a3;
    c31 += b1 * a3;
  }
  store_blocks(tile.x, tile.y, 16u, 8u);
}

@compute @workgroup_size(8)
fn narrow(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * 8u + lane, 8u, 4u);
  if (tile.w == 0u) {
    return;
  }
  for (var k = tile.z; k < tile.w; k += 4u) {
    let b0 = read_block_b(k, tile.y);
    c00 += b0 * read_block_a(tile.x, k);
    c10 += b0 * read_block_a(tile.x + 4u, k);
  }
  store_blocks(tile.x, tile.y, 8u, 4u);
}
