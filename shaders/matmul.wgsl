// C = A·B without workgroup memory: each invocation reads 4x4 blocks of A and B from storage and multiplies them in registers.
// For adapters on which an invocation is a lane of the CPU's vectors and a barrier is dear. The tile is chosen by swapping its include.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias B = vec4<f32>;
alias B4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const B_WIDE = true;
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
const TRANSPOSE_B = false; // b is stored [N,K]
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/store_block_4.wgsl

const TILE_STEP = 4u;

fn stage_begins(k: u32) -> bool {
  return false;
}

fn stage(k: u32) {}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  return read_block_a(m, k);
}

fn load_b(k: u32, n: u32) -> mat4x4<f32> {
  return read_block_b(k, n);
}

// include lib/tile_8x8.wgsl

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 32u + lane;
  let tiles = params.tiles_m * params.tiles_n;
  let slice = i / tiles;
  if (slice >= params.slices) {
    return;
  }
  let batch = slice % params.batch;
  a_base = batch * params.a_stride;
  b_base = batch * params.b_stride;
  y_base = slice * params.m * params.n;
  let k = slice / params.batch * params.slice_k;
  let size = 4u * TILE_BLOCKS;
  compute_tile(i % tiles / params.tiles_n * size, i % params.tiles_n * size, k, min(k + params.slice_k, params.k));
}
