// Convolution without workgroup memory: each invocation reads 4x4 blocks of source and filter from storage and multiplies them in registers.
// For adapters on which an invocation is a lane of the CPU's vectors and a barrier is dear. The tile is chosen by swapping its include.
// Neighbouring invocations take neighbouring channels of the same pixels: their source reads meet in one cache line.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias W = vec4<f32>;
alias W4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const W_WIDE = true;
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
const UPSAMPLE = false; // the source is read enlarged twice, nearest
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/store_row_4.wgsl

// The tile's blocks begin at 0; the invocation's place is in these.
const TILE_STEP = 4u;

var<private> m_origin: u32;
var<private> n_origin: u32;
var<private> phase: u32;
var<private> taps: Taps;
var<private> pixels_0: Pixels;
var<private> pixels_1: Pixels;
// Of the current tap.
var<private> source_0: vec4<u32>;
var<private> source_1: vec4<u32>;
var<private> row: u32;
var<private> tap_k: u32;
var<private> next_k: u32;

fn stage_begins(k: u32) -> bool {
  return k == next_k;
}

// Called where a tap begins: addresses are worked out once for all its channels.
fn stage(k: u32) {
  let t = k / params.tap_k;
  let tap = vec2<u32>(t / taps.count.y, t % taps.count.y);
  tap_k = k;
  next_k = k + params.tap_k;
  row = filter_row(taps, tap);
  source_0 = sources(pixels_0, tap);
  if (TILE_BLOCKS > 1u) {
    source_1 = sources(pixels_1, tap);
  }
}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  if (m == 0u) {
    return read_block_x(source_0, k - tap_k);
  }
  return read_block_x(source_1, k - tap_k);
}

fn load_b(k: u32, n: u32) -> mat4x4<f32> {
  return read_block_w(row, k - tap_k, n_origin + n);
}

fn store_block(m: u32, n: u32, c: mat4x4<f32>) {
  store_row(result_row(m_origin + m, phase), n_origin + n, c[0]);
  store_row(result_row(m_origin + m + 1u, phase), n_origin + n, c[1]);
  store_row(result_row(m_origin + m + 2u, phase), n_origin + n, c[2]);
  store_row(result_row(m_origin + m + 3u, phase), n_origin + n, c[3]);
}

// include lib/tile_8x8.wgsl

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 32u + lane;
  let size = 4u * TILE_BLOCKS;
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let tile_m = i / params.tiles_n % params.tiles_m;
  phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  if (slice >= params.slices) {
    return;
  }
  m_origin = tile_m * size;
  n_origin = i % params.tiles_n * size;
  y_base = slice * params.m * params.n;
  taps = taps_of(phase);
  pixels_0 = pixels_at(m_origin, phase);
  if (TILE_BLOCKS > 1u) {
    pixels_1 = pixels_at(m_origin + 4u, phase);
  }
  let k = slice * params.slice_k;
  next_k = k;
  compute_tile(0u, 0u, k, min(k + params.slice_k, taps.count.x * taps.count.y * params.tap_k));
}
