// Convolution for GPUs: 64 invocations share a tile of the product; source and filter pass through workgroup memory STAGE_K at a time,
// each invocation bringing one 4x4 block of both. 64x64 results with 8x8 registers and STAGE_K = 16, or 32x32 with 4x4 and 32: 8 KiB
// either way. An invocation brings the same four pixels every time, so their coordinates are worked out once, and a block lies in one tap,
// so its bounds are tested once for four channels. An invocation's blocks of the result lie 8 blocks apart, so that neighbours read
// neighbouring vec4s of workgroup memory.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
const STAGE_K = 16u;
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

const TILE_STEP = 32u;
// Blocks along k and along m or n of what is staged.
const K_BLOCKS = STAGE_K / 4u;
const LINE = 64u / K_BLOCKS;

// By (block of k, pixel within the block of m or source channel within the block of k, block of m or n).
var<workgroup> x_tile: array<vec4<f32>, 256>;
var<workgroup> w_tile: array<vec4<f32>, 256>;

var<private> m_origin: u32;
var<private> n_origin: u32;
var<private> phase: u32;
var<private> taps: Taps;
var<private> k_count: u32;
// Block of k, and of m or n, that this invocation brings.
var<private> place_x: vec2<u32>;
var<private> place_w: vec2<u32>;
var<private> pixels: Pixels;

// k begins at a multiple of STAGE_K.
fn stage_begins(k: u32) -> bool {
  return k % STAGE_K == 0u;
}

fn tap_at(k: u32) -> vec2<u32> {
  let t = k / params.tap_k;
  return vec2<u32>(t / taps.count.y, t % taps.count.y);
}

fn stage(k: u32) {
  var a = mat4x4<f32>();
  var b = mat4x4<f32>();
  let k_x = k + place_x.x * 4u;
  if (k_x < k_count) {
    a = read_block_x(sources(pixels, tap_at(k_x)), k_x % params.tap_k);
  }
  let k_w = k + place_w.x * 4u;
  if (k_w < k_count) {
    b = read_block_w(filter_row(taps, tap_at(k_w)), k_w % params.tap_k, n_origin + place_w.y * 4u);
  }
  workgroupBarrier();
  let i = place_x.x * 4u * LINE + place_x.y;
  x_tile[i] = a[0];
  x_tile[i + LINE] = a[1];
  x_tile[i + 2u * LINE] = a[2];
  x_tile[i + 3u * LINE] = a[3];
  let j = place_w.x * 4u * LINE + place_w.y;
  w_tile[j] = b[0];
  w_tile[j + LINE] = b[1];
  w_tile[j + 2u * LINE] = b[2];
  w_tile[j + 3u * LINE] = b[3];
  workgroupBarrier();
}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  let i = k % STAGE_K * LINE + m / 4u;
  return mat4x4<f32>(x_tile[i], x_tile[i + LINE], x_tile[i + 2u * LINE], x_tile[i + 3u * LINE]);
}

fn load_b(k: u32, n: u32) -> mat4x4<f32> {
  let i = k % STAGE_K * LINE + n / 4u;
  return mat4x4<f32>(w_tile[i], w_tile[i + LINE], w_tile[i + 2u * LINE], w_tile[i + 3u * LINE]);
}

fn store_block(m: u32, n: u32, c: mat4x4<f32>) {
  store_row(result_row(m_origin + m, phase), n_origin + n, c[0]);
  store_row(result_row(m_origin + m + 1u, phase), n_origin + n, c[1]);
  store_row(result_row(m_origin + m + 2u, phase), n_origin + n, c[2]);
  store_row(result_row(m_origin + m + 3u, phase), n_origin + n, c[3]);
}

// include lib/tile_8x8.wgsl

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count);
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let group_phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  if (slice >= params.slices) {
    return;
  }
  let group_taps = taps_of(group_phase);
  phase = group_phase;
  taps = group_taps;
  m_origin = i / params.tiles_n % params.tiles_m * 32u * TILE_BLOCKS;
  n_origin = i % params.tiles_n * 32u * TILE_BLOCKS;
  y_base = slice * params.m * params.n;
  // Neighbouring invocations read along the dimension that is contiguous in memory.
  let along_k = vec2<u32>(lane % K_BLOCKS, lane / K_BLOCKS);
  place_x = along_k;
  place_w = select(vec2<u32>(lane / LINE, lane % LINE), along_k, GRADIENT);
  pixels = pixels_at(m_origin + place_x.y * 4u, group_phase);
  let k = slice * params.slice_k;
  let k_end = min(k + params.slice_k, group_taps.count.x * group_taps.count.y * params.tap_k);
  k_count = k_end;
  compute_tile(lane / 8u * 4u, lane % 8u * 4u, k, k_end);
}
