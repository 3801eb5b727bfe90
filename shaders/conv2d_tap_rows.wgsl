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

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 8u + lane;
  if (i >= params.tiles_m * params.tiles_n) {
    return;
  }
  let m = i / params.tiles_n * 16u;
  let n = i % params.tiles_n * 8u;
  // Of each block of four pixels: image, row and column of the first.
  let first = vec4<u32>(m, m + 4u, m + 8u, m + 12u);
  let column = first % params.y_width;
  let line = first / params.y_width;
  let row = line % params.y_height;
  let upsampled = params.upsample == 1u;
  let shift = vec4<u32>(1u);
  let width = select(params.width, params.width / 2u, upsampled);
  let height = select(params.height, params.height / 2u, upsampled);
  let image = line / params.y_height * height;
  let source_column = select(column, column >> shift, upsampled);
  step_1 = select(params.channels, 0u, upsampled);
  step_2 = select(2u * params.channels, params.channels, upsampled);
  step_3 = select(3u * params.channels, params.channels, upsampled);
  step_4 = select(4u * params.channels, 2u * params.channels, upsampled);
  let starts = column == vec4<u32>(0u);
  let ends = column + 4u == vec4<u32>(params.y_width);
  let taps = taps_of(0u);
  // Zeros above the image; in the gradient, the taps below a pixel come first.
  let above = select(params.pad_top, params.taps_y - 1u - params.pad_top, GRADIENT);
  for (var r = 0u; r < params.taps_y; r++) {
    // Negative positions are large unsigned ones.
    let source_row = row + r - above;
    let inside = source_row < vec4<u32>(params.height);
    let before = inside & !starts;
    let after = inside & !ends;
    let at = ((image + select(source_row, source_row >> shift, upsampled)) * width + source_column) * params.channels;
    let tap = select(r, params.taps_y - 1u - r, GRADIENT);
    let left = filter_row(taps, vec2<u32>(tap, select(0u, 2u, GRADIENT)));
    let middle = filter_row(taps, vec2<u32>(tap, 1u));
    let right = filter_row(taps, vec2<u32>(tap, select(2u, 0u, GRADIENT)));
    for (var c = 0u; c < params.channels; c++) {
      let w0 = window(at.x + c, inside.x, before.x, after.x);
      let w1 = window(at.y + c, inside.y, before.y, after.y);
      let w2 = window(at.z + c, inside.z, before.z, after.z);
      let w3 = window(at.w + c, inside.w, before.w, after.w);
      add_tap(left, c, n, w0.left, w1.left, w2.left, w3.left);
      add_tap(middle, c, n, w0.middle, w1.middle, w2.middle, w3.middle);
      add_tap(right, c, n, w0.right, w1.right, w2.right, w3.right);
    }
  }
  store_blocks(m, n, 16u, 8u);
}
