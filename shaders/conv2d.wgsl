// Convolution without workgroup memory: each invocation reads 4x4 blocks of source and filter from storage and multiplies them in registers.
// For adapters on which an invocation is a lane of the CPU's vectors and a barrier is dear. Entry points by what an invocation computes:
// `forward` 16 pixels of 8 channels (few loads for each product), `narrow` 8 of 4, for small problems and few channels.
// Neighbouring invocations take neighbouring channels of the same pixels: their source reads meet in one cache line.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

var<private> tile_phase: u32;

fn tile_row(m: u32) -> u32 {
  return result_row(m, tile_phase);
}

// include lib/block_tile.wgsl

// The invocation's tile of `height` pixels and `width` channels.
struct Tile {
  m: u32,
  n: u32,
  phase: u32,
  slice: u32,
}

fn tile_at(i: u32, height: u32, width: u32) -> Tile {
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  tile_phase = phase;
  y_base = slice * params.m * params.n;
  return Tile(i / params.tiles_n % params.tiles_m * height, i % params.tiles_n * width, phase, slice);
}

// First tap of a slice, and the one after its last.
fn taps_in(slice: u32, taps: Taps) -> vec2<u32> {
  let part = params.slice_k / params.tap_k;
  return vec2<u32>(slice * part, min(slice * part + part, taps.count.x * taps.count.y));
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * 8u + lane, 16u, 8u);
  if (tile.slice >= params.slices) {
    return;
  }
  let taps = taps_of(tile.phase);
  let range = taps_in(tile.slice, taps);
  let pixels_0 = pixels_at(tile.m, tile.phase);
  let pixels_1 = pixels_at(tile.m + 4u, tile.phase);
  let pixels_2 = pixels_at(tile.m + 8u, tile.phase);
  let pixels_3 = pixels_at(tile.m + 12u, tile.phase);
  for (var t = range.x; t < range.y; t++) {
    let tap = vec2<u32>(t / taps.count.y, t % taps.count.y);
    let source_0 = sources(pixels_0, tap);
    let source_1 = sources(pixels_1, tap);
    let source_2 = sources(pixels_2, tap);
    let source_3 = sources(pixels_3, tap);
    let row = filter_row(taps, tap);
    for (var c = 0u; c < params.channels; c += 4u) {
      let b0 = read_block_w(row, c, tile.n);
      let b1 = read_block_w(row, c, tile.n + 4u);
      let x0 = read_block_x(source_0, c);
      c00 += b0 * x0;
      c01 += b1 * x0;
      let x1 = read_block_x(source_1, c);
      c10 += b0 * x1;
      c11 += b1 * x1;
      let x2 = read_block_x(source_2, c);
      c20 += b0 * x2;
      c21 += b1 * x2;
      let x3 = read_block_x(source_3, c);
      c30 += b0 * x3;
      c31 += b1 * x3;
    }
  }
  store_blocks(tile.m, tile.n, 16u, 8u);
}

@compute @workgroup_size(8)
fn narrow(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * 8u + lane, 8u, 4u);
  if (tile.slice >= params.slices) {
    return;
  }
  let taps = taps_of(tile.phase);
  let range = taps_in(tile.slice, taps);
  let pixels_0 = pixels_at(tile.m, tile.phase);
  let pixels_1 = pixels_at(tile.m + 4u, tile.phase);
  for (var t = range.x; t < range.y; t++) {
    let tap = vec2<u32>(t / taps.count.y, t % taps.count.y);
    let source_0 = sources(pixels_0, tap);
    let source_1 = sources(pixels_1, tap);
    let row = filter_row(taps, tap);
    for (var c = 0u; c < params.channels; c += 4u) {
      let b0 = read_block_w(row, c, tile.n);
      c00 += b0 * read_block_x(source_0, c);
      c10 += b0 * read_block_x(source_1, c);
    }
  }
  store_blocks(tile.m, tile.n, 8u, 4u);
}
