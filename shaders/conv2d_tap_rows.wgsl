// Convolution with filters three taps wide at stride 1 and padding 1 on either side, for software adapters, where the number of loads decides: an invocation computes
// 16 pixels of 8 channels, and the six neighbours that it loads for each four pixels of a row serve all three taps. 48 loads for 384 multiply-adds,
// where conv2d.wgsl takes 72. Rows of the result are divisible by 4 pixels.
// include lib/index.wgsl
// prologue
alias X = f32;
alias X4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = false;
const CHANNEL_EDGE = false;
const FEW_CHANNELS = false;
const GRADIENT = false; // the result is the gradient of the input: the filter is read transposed, and its taps in reverse
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl
// include lib/add_outer.wgsl

fn tile_row(m: u32) -> u32 {
  return result_row(m, 0u);
}

// include lib/block_tile.wgsl

// What four neighbouring pixels of the result read of one channel: for the left, the middle and the right tap.
struct Window {
  left: vec4<f32>,
  middle: vec4<f32>,
  right: vec4<f32>,
}

// Elements from the source pixel of the first result pixel to those of the others and of the one after them.
var<private> step_1: u32;
var<private> step_2: u32;
var<private> step_3: u32;
var<private> step_4: u32;

// `at`: the channel in the source pixel of the first. `inside`: of the image's rows; `before` and `after`: whether the row goes on there, too.
fn window(at: u32, inside: bool, before: bool, after: bool) -> Window {
  let x0 = select(0.0, f32(x[at - params.channels]), before);
  let x1 = select(0.0, f32(x[at]), inside);
  let x2 = select(0.0, f32(x[at + step_1]), inside);
  let x3 = select(0.0, f32(x[at + step_2]), inside);
  let x4 = select(0.0, f32(x[at + step_3]), inside);
  let x5 = select(0.0, f32(x[at + step_4]), after);
  return Window(vec4<f32>(x0, x1, x2, x3), vec4<f32>(x1, x2, x3, x4), vec4<f32>(x2, x3, x4, x5));
}

// Adds one tap of one channel: `row` is from filter_row.
fn add_tap(row: u32, channel: u32, n: u32, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) {
  let w0 = weights(row, channel, n);
  let w1 = weights(row, channel, n + 4u);
  c00 = add_outer(c00, w0, x0);
  c01 = add_outer(c01, w1, x0);
  c10 = add_outer(c10, w0, x1);
  c11 = add_outer(c11, w1, x1);
  c20 = add_outer(c20, w0, x2);
  c21 = add_outer(c21, w1, x2);
  c30 = add_outer(c30, w0, x3);
  c31 = add_outer(c31, w1, x3);
}

// Of each block of four pixels: row of the result, column and image's first row in the source, and whether it begins or ends a row.
struct Blocks {
  row: vec4<u32>,
  column: vec4<u32>,
  image: vec4<u32>,
  starts: vec4<bool>,
  ends: vec4<bool>,
}

fn blocks_at(m: u32) -> Blocks {
  let first = vec4<u32>(m, m + 4u, m + 8u, m + 12u);
  let column = first % params.y_width;
  let line = first / params.y_width;
  return Blocks(
    line % params.y_height,
    column >> vec4<u32>(params.upsample),
    line / params.y_height * (params.height >> params.upsample),
    column == vec4<u32>(0u),
    column + 4u == vec4<u32>(params.y_width),
  );
}

// What one row of taps reads: the blocks' first elements and which of theirs lie inside (see `window`), and rows of the filter.
struct TapRow {
  at: vec4<u32>,
  inside: vec4<bool>,
  before: vec4<bool>,
  after: vec4<bool>,
  left: u32,
  middle: u32,
  right: u32,
}

fn tap_row(blocks: Blocks, r: u32) -> TapRow {
  // Zeros above the image; in the gradient, the taps below a pixel come first.
  let above = select(params.pad_top, params.taps_y - 1u - params.pad_top, GRADIENT);
  // Negative positions are large unsigned ones.
  let row = blocks.row + r - above;
  let inside = row < vec4<u32>(params.height);
  let tap = select(r, params.taps_y - 1u - r, GRADIENT);
  let taps = taps_of(0u);
  return TapRow(
    ((blocks.image + (row >> vec4<u32>(params.upsample))) * (params.width >> params.upsample) + blocks.column) * params.channels,
    inside,
    inside & !blocks.starts,
    inside & !blocks.ends,
    filter_row(taps, vec2<u32>(tap, select(0u, 2u, GRADIENT))),
    filter_row(taps, vec2<u32>(tap, 1u)),
    filter_row(taps, vec2<u32>(tap, select(2u, 0u, GRADIENT))),
  );
}

fn add_channel(taps: TapRow, c: u32, n: u32) {
  let w0 = window(taps.at.x + c, taps.inside.x, taps.before.x, taps.after.x);
  let w1 = window(taps.at.y + c, taps.inside.y, taps.before.y, taps.after.y);
  let w2 = window(taps.at.z + c, taps.inside.z, taps.before.z, taps.after.z);
  let w3 = window(taps.at.w + c, taps.inside.w, taps.before.w, taps.after.w);
  add_tap(taps.left, c, n, w0.left, w1.left, w2.left, w3.left);
  add_tap(taps.middle, c, n, w0.middle, w1.middle, w2.middle, w3.middle);
  add_tap(taps.right, c, n, w0.right, w1.right, w2.right, w3.right);
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 8u + lane;
  if (i >= params.tiles_m * params.tiles_n) {
    return;
  }
  let m = i / params.tiles_n * 16u;
  let n = i % params.tiles_n * 8u;
  let upsampled = params.upsample == 1u;
  step_1 = select(params.channels, 0u, upsampled);
  step_2 = select(2u * params.channels, params.channels, upsampled);
  step_3 = select(3u * params.channels, params.channels, upsampled);
  step_4 = select(4u * params.channels, 2u * params.channels, upsampled);
  let blocks = blocks_at(m);
  if (FEW_CHANNELS) {
    // One loop over rows of taps and channels: starting a loop costs as much as half a turn of it.
    var r = 0u;
    var c = 0u;
    for (var turn = 0u; turn < params.taps_y * params.channels; turn++) {
      add_channel(tap_row(blocks, r), c, n);
      let last = c + 1u == params.channels;
      c = select(c + 1u, 0u, last);
      r = select(r, r + 1u, last);
    }
  } else {
    for (var r = 0u; r < params.taps_y; r++) {
      let taps = tap_row(blocks, r);
      for (var c = 0u; c < params.channels; c++) {
        add_channel(taps, c, n);
      }
    }
  }
  store_blocks(m, n, 16u, 8u);
}
