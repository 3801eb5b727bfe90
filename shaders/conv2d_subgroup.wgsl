// Convolution for software adapters with subgroups of 8 lanes (llvmpipe): see matmul_subgroup.wgsl. A subgroup computes 32 pixels of 32
// channels, four channels a lane. Lane i loads the source of pixels 4i to 4i + 3, so of the tile's eights of rows the j-th are every lane's j-th pixels. 64 pixels are twice that.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const CHANNEL_EDGE = false; // the source's channels are not divisible by 4
const GRADIENT = false; // the result is the gradient of the input
const ROWS = 32u; // pixels of a tile: 32 or 64
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl
const BY_TERMS = false;
// include lib/subgroup_tile.wgsl

// `own` are the rows of the result that hold the lane's four pixels.
fn store_rows(own: vec4<u32>, j: u32, n: u32, sums: Sums) {
  for (var i = 0u; i < 8u; i++) {
    store_row(subgroupShuffle(own[j], i), n, sums[i]);
  }
}

// As in matmul_subgroup.wgsl; `first` is the tile's first pixel.
fn store_tile(own: vec4<u32>, first: u32, n: u32, sums: Tile) {
  if (ROWS > 32u) {
    store_rows(own, 0u, n, sums.c0);
    store_rows(own, 1u, n, sums.c1);
    store_rows(own, 2u, n, sums.c2);
    store_rows(own, 3u, n, sums.c3);
  } else {
    var rows = array<Sums, 4>(sums.c0, sums.c1, sums.c2, sums.c3);
    for (var i = 0u; i < ROWS && first + i < params.phase_m; i++) {
      let pixel = subgroupShuffle(own, i / 4u);
      store_row(pixel[i % 4u], n, rows[i % 4u][i / 4u]);
    }
  }
}

fn result_rows(m: u32, phase: u32) -> vec4<u32> {
  return vec4<u32>(result_row(m, phase), result_row(m + 1u, phase), result_row(m + 2u, phase), result_row(m + 3u, phase));
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  if (slice >= params.slices) {
    return;
  }
  let first_pixel = i / params.tiles_n % params.tiles_m * ROWS;
  let m = first_pixel + lane * 4u;
  let n = i % params.tiles_n * 32u + lane * 4u;
  let taps = taps_of(phase);
  let pixels = pixels_at(m, phase);
  var pixels_below: Pixels;
  if (ROWS > 32u) {
    pixels_below = pixels_at(m + 32u, phase);
  }
  let first = slice * (params.slice_k / params.tap_k);
  let last = min(first + params.slice_k / params.tap_k, taps.count.x * taps.count.y);
  var sums = Tile();
  var below = Tile();
  var tap = vec2<u32>(first / max(taps.count.y, 1u), first % max(taps.count.y, 1u));
  for (var t = first; t < last; t++) {
    let source = sources(pixels, tap);
    var source_below: vec4<u32>;
    if (ROWS > 32u) {
      source_below = sources(pixels_below, tap);
    }
    let row = filter_row(taps, tap);
    var c = 0u;
    loop {
      // All loads come before all products: see matmul_subgroup.wgsl.
      let w = read_block_w(row, c, n);
      let x = read_block_x(source, c);
      var x_below: mat4x4<f32>;
      if (ROWS > 32u) {
        x_below = read_block_x(source_below, c);
      }
      sums = add_product(sums, x, w);
      if (ROWS > 32u) {
        below = add_product(below, x_below, w);
      }
      continuing {
        c += 4u;
        break if c >= params.channels;
      }
    }
    tap = select(vec2<u32>(tap.x, tap.y + 1u), vec2<u32>(tap.x + 1u, 0u), tap.y + 1u == taps.count.y);
  }
  y_base = slice * params.m * params.n;
  store_tile(result_rows(m, phase), first_pixel, n, sums);
  if (ROWS > 32u) {
    store_tile(result_rows(m + 32u, phase), first_pixel + 32u, n, below);
  }
}
