// C = A·B for GPUs: 64 invocations share a tile of C; A and B pass through workgroup memory STAGE_K at a time, each invocation
// bringing one 4x4 block of both. 64x64 results with 8x8 registers and STAGE_K = 16, or 32x32 with 4x4 and 32: 8 KiB either way.
// An invocation's blocks lie 8 blocks apart, so that neighbours read neighbouring vec4s of workgroup memory.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
const TRANSPOSE_B = false; // b is stored [N,K]
const STAGE_K = 16u;
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_block_4.wgsl

const TILE_STEP = 32u;
// Blocks along k and along m or n of what is staged.
const K_BLOCKS = STAGE_K / 4u;
const LINE = 64u / K_BLOCKS;

// By (block of k, row within the block of m or column-vector within the block of k, block of m or n).
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

var<private> lane: u32;
var<private> m_origin: u32;
var<private> n_origin: u32;

// k begins at a multiple of STAGE_K.
fn stage_begins(k: u32) -> bool {
  return k % STAGE_K == 0u;
}

fn stage(k: u32) {
  // Neighbouring invocations read along the dimension that is contiguous in memory.
  let along_k = vec2<u32>(lane % K_BLOCKS, lane / K_BLOCKS);
  let across_k = vec2<u32>(lane / LINE, lane % LINE);
  let place_a = select(along_k, across_k, TRANSPOSE_A);
  let place_b = select(across_k, along_k, TRANSPOSE_B);
  let x = read_block_a(m_origin + place_a.y * 4u, k + place_a.x * 4u);
  let z = read_block_b(k + place_b.x * 4u, n_origin + place_b.y * 4u);
  workgroupBarrier();
  let i = place_a.x * 4u * LINE + place_a.y;
  a_tile[i] = x[0];
  a_tile[i + LINE] = x[1];
  a_tile[i + 2u * LINE] = x[2];
  a_tile[i + 3u * LINE] = x[3];
  let j = place_b.x * 4u * LINE + place_b.y;
  b_tile[j] = z[0];
  b_tile[j + LINE] = z[1];
  b_tile[j + 2u * LINE] = z[2];
  b_tile[j + 3u * LINE] = z[3];
  workgroupBarrier();
}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  let i = k % STAGE_K * LINE + (m - m_origin) / 4u;
  return mat4x4<f32>(a_tile[i], a_tile[i + LINE], a_tile[i + 2u * LINE], a_tile[i + 3u * LINE]);
}

fn load_b(k: u32, n: u32) -> mat4x4<f32> {
  let i = k % STAGE_K * LINE + (n - n_origin) / 4u;
  return mat4x4<f32>(b_tile[i], b_tile[i + LINE], b_tile[i + 2u * LINE], b_tile[i + 3u * LINE]);
}

// include lib/tile_8x8.wgsl

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let tile = tile_at(flat_workgroup(id, count), 32u * TILE_BLOCKS, 32u * TILE_BLOCKS);
  if (tile.w == 0u) {
    return;
  }
  lane = index;
  m_origin = tile.x;
  n_origin = tile.y;
  compute_tile(tile.x + index / 8u * 4u, tile.y + index % 8u * 4u, tile.z, tile.w);
}
