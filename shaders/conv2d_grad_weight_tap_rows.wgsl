// Gradient of a filter three taps wide at stride 1 and padding 1 on either side, for software adapters, where the number of loads decides: an invocation
// computes the three taps of a filter row for 4 source channels and 8 result channels. Along a row each source pixel is loaded once for
// all three: 48 loads for 384 multiply-adds. Rows of the result are divisible by 4 pixels.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias D = vec4<f32>;
alias D4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // source channels are divisible by 4, and X is a vec4
const D_WIDE = true; // result channels are divisible by 4, and D is a vec4
const COLUMN_EDGE = false;
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_grad_weight_operands.wgsl
// include lib/store_row_4.wgsl
// include lib/add_outer.wgsl

// c<tap><block of result channels>: column j is source channel j.
var<private> c00: mat4x4<f32>;
var<private> c01: mat4x4<f32>;
var<private> c10: mat4x4<f32>;
var<private> c11: mat4x4<f32>;
var<private> c20: mat4x4<f32>;
var<private> c21: mat4x4<f32>;

// Adds a pixel of dL/dy, whose eight channels begin at element `at`; its taps read these source pixels.
fn add_pixel(at: u32, left: vec4<f32>, middle: vec4<f32>, right: vec4<f32>) {
  let dy0 = read_dy(at);
  let dy1 = read_dy(at + 4u);
  c00 = add_outer(c00, dy0, left);
  c01 = add_outer(c01, dy1, left);
  c10 = add_outer(c10, dy0, middle);
  c11 = add_outer(c11, dy1, middle);
  c20 = add_outer(c20, dy0, right);
  c21 = add_outer(c21, dy1, right);
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 8u + lane;
  let slice = i / (params.tiles_n * params.tiles_m);
  if (slice >= params.slices) {
    return;
  }
  let blocks = params.tap_m / 4u;
  let tile_m = i / params.tiles_n % params.tiles_m;
  let tap_row = tile_m / blocks;
  let c = tile_m % blocks * 4u;
  let n = i % params.tiles_n * 8u;
  let upsampled = params.upsample == 1u;
  // From the source pixel of the first of four pixels to those of the others and of the one after them.
  let step_1 = select(params.channels, 0u, upsampled);
  let step_2 = select(2u * params.channels, params.channels, upsampled);
  let step_3 = select(3u * params.channels, params.channels, upsampled);
  let step_4 = select(4u * params.channels, 2u * params.channels, upsampled);
  let place = Rows(i32(tap_row) - i32(params.pad_top), -1, c);
  // Counted along: a division costs such adapters as much as a load.
  var image = slice * params.slice_rows / params.dy_height;
  var oy = slice * params.slice_rows % params.dy_height;
  for (var row = slice * params.slice_rows; row < min((slice + 1u) * params.slice_rows, params.rows); row++) {
    let source = source_row(place, image, oy);
    oy++;
    if (oy == params.dy_height) {
      oy = 0u;
      image++;
    }
    if (source == NOWHERE) {
      continue;
    }
    var at = source * params.channels + c;
    var from_dy = row * params.dy_width * params.n + n;
    var x0 = vec4<f32>();
    var x1 = read_x(at);
    for (var ox = 0u; ox < params.dy_width; ox += 4u) {
      let x2 = read_x(at + step_1);
      let x3 = read_x(at + step_2);
      let x4 = read_x(at + step_3);
      let x5 = select(vec4<f32>(), read_x(at + step_4), ox + 4u < params.dy_width);
      add_pixel(from_dy, x0, x1, x2);
      add_pixel(from_dy + params.n, x1, x2, x3);
      add_pixel(from_dy + 2u * params.n, x2, x3, x4);
      add_pixel(from_dy + 3u * params.n, x3, x4, x5);
      at += step_4;
      from_dy += 4u * params.n;
      x0 = x4;
      x1 = x5;
    }
  }
  y_base = slice * params.m * params.n;
  var sums = array<mat4x4<f32>, 6>(c00, c01, c10, c11, c20, c21);
  for (var j = 0u; j < 12u; j++) {
    let tap = j / 4u;
    let m = select(NOWHERE, (tap_row * 3u + tap) * params.channels + c + j % 4u, c + j % 4u < params.channels);
    store_row(m, n, sums[2u * tap][j % 4u]);
    store_row(m, n + 4u, sums[2u * tap + 1u][j % 4u]);
  }
}
