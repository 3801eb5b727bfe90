// C = A·B in subgroup matrices, for GPUs that have them: a workgroup computes a tile of C. See lib/subgroup_matrix_tile.wgsl.
// include lib/index.wgsl
// prologue
alias A = vec4<f16>;
alias A4 = vec4<f16>;
alias Y = vec4<f16>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
const TRANSPOSE_B = false; // b is stored [N,K]
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

const A_ALONG_K = !TRANSPOSE_A;
const B_ALONG_K = TRANSPOSE_B;

var<private> m_origin: u32;
var<private> n_origin: u32;

fn block_a(turn: u32, m: u32, k: u32) -> mat4x4<f32> {
  return read_block_a(m_origin + m, k);
}

fn block_b(k: u32, n: u32) -> mat4x4<f32> {
  return read_block_b(k, n_origin + n);
}

fn store_four(m: u32, n: u32, c: vec4<f32>) {
  store_row(m_origin + m, n_origin + n, c);
}

// include lib/subgroup_matrix_tile.wgsl

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32) {
  let tile = tile_at(flat_workgroup(id, count), TILE_M, TILE_N);
  if (tile.w == 0u) {
    return;
  }
  m_origin = tile.x;
  n_origin = tile.y;
  compute_tile(subgroup, lane, tile.z, tile.w);
}
