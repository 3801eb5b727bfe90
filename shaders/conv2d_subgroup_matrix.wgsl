// Convolution in subgroup matrices, for GPUs that have them: a workgroup computes a tile of the product. See lib/subgroup_matrix_tile.wgsl.
// A lane brings the same pixels every time, so their coordinates are worked out once, and a block lies in one tap, so its bounds are tested
// once for four channels.
// include lib/index.wgsl
// prologue
alias X = vec4<f16>;
alias X4 = vec4<f16>;
alias Y = vec4<f16>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

const A_ALONG_K = true;
const B_ALONG_K = GRADIENT;

var<private> m_origin: u32;
var<private> n_origin: u32;
var<private> phase: u32;
var<private> taps: Taps;
var<private> k_count: u32;
// Of the lane's blocks, in their order.
var<private> pixels: array<Pixels, TURNS>;

fn tap_at(k: u32) -> vec2<u32> {
  let t = k / params.tap_k;
  return vec2<u32>(t / taps.count.y, t % taps.count.y);
}

fn block_a(turn: u32, m: u32, k: u32) -> mat4x4<f32> {
  if (k >= k_count) {
    return mat4x4<f32>();
  }
  return read_block_x(sources(pixels[turn], tap_at(k)), k % params.tap_k);
}

fn block_b(k: u32, n: u32) -> mat4x4<f32> {
  if (k >= k_count) {
    return mat4x4<f32>();
  }
  return read_block_w(filter_row(taps, tap_at(k)), k % params.tap_k, n_origin + n);
}

fn store_four(m: u32, n: u32, c: vec4<f32>) {
  store_row(result_row(m_origin + m, phase), n_origin + n, c);
}

// include lib/subgroup_matrix_tile.wgsl

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32) {
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
  m_origin = i / params.tiles_n % params.tiles_m * TILE_M;
  n_origin = i % params.tiles_n * TILE_N;
  y_base = slice * params.m * params.n;
  for (var turn = 0u; turn < TURNS; turn++) {
    pixels[turn] = pixels_at(m_origin + place_a(lane + turn * LANES).x, group_phase);
  }
  let k = slice * params.slice_k;
  let k_end = min(k + params.slice_k, group_taps.count.x * group_taps.count.y * params.tap_k);
  k_count = k_end;
  compute_tile(subgroup, lane, k, k_end);
}
