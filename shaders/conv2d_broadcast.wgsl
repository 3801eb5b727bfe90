// Convolution for software adapters with subgroups of 4 lanes (SwiftShader): a subgroup computes 8 pixels of 16 channels, see
// lib/broadcast_tile.wgsl. A filter that is read transposed is transposed before.
// include lib/index.wgsl
// prologue
alias X = f32;
alias X4 = vec4<f32>;
alias Y = f32;
alias V = f32;
const X_WIDE = false;
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_1.wgsl
// include lib/broadcast_tile.wgsl
// include lib/broadcast_store.wgsl

var<private> phase: u32;

fn tile_row(m: u32) -> u32 {
  return result_row(m, phase);
}

@compute @workgroup_size(4)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let tile_phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  if (slice >= params.slices) {
    return;
  }
  let m = i / params.tiles_n % params.tiles_m * 8u;
  let n = i % params.tiles_n * 16u;
  let taps = taps_of(tile_phase);
  let upper = pixels_at(m, tile_phase);
  let lower = pixels_at(m + 4u, tile_phase);
  let first = slice * (params.slice_k / params.tap_k);
  let last = min(first + params.slice_k / params.tap_k, taps.count.x * taps.count.y);
  for (var t = first; t < last; t++) {
    let tap = vec2<u32>(t / taps.count.y, t % taps.count.y);
    let source_0 = sources(upper, tap);
    let source_1 = sources(lower, tap);
    // Channels of the pixels: none outside the image.
    let channels_0 = select(vec4<u32>(params.channels), vec4<u32>(), source_0 == vec4<u32>(NOWHERE));
    let channels_1 = select(vec4<u32>(params.channels), vec4<u32>(), source_1 == vec4<u32>(NOWHERE));
    let row = filter_tap(taps, tap) * params.channels;
    for (var c = 0u; c < params.channels; c += 4u) {
      let k = vec4<u32>(c + lane);
      let at_0 = source_0 + k;
      let at_1 = source_1 + k;
      let x_0 = select(vec4<f32>(), vec4<f32>(f32(x[at_0.x]), f32(x[at_0.y]), f32(x[at_0.z]), f32(x[at_0.w])), k < channels_0);
      let x_1 = select(vec4<f32>(), vec4<f32>(f32(x[at_1.x]), f32(x[at_1.y]), f32(x[at_1.z]), f32(x[at_1.w])), k < channels_1);
      var b = weight_lanes(row, c, n, lane);
      if (CHANNEL_EDGE) {
        b = cut_columns(b, c, params.channels);
      }
      multiply(x_0, x_1, b);
    }
  }
  phase = tile_phase;
  y_base = slice * params.m * params.n;
  store_tile(m, n, lane);
}
