// The gradient of a convolution's filter as a matrix product (conv2d_grad_weight.wgsl, conv2d_grad_weight_subgroup.wgsl): rows m are
// (tap, source channel), columns n the result's channels, and k runs over pixels of dL/dy, row by row of the image, its width rounded up
// to 4, so that a block of 4 lies in one row. Image rows are split into slices, whose partial sums a second pass adds in their order:
// the sum is long and the result is small.
struct Params {
  m: u32, // taps · source channels
  n: u32, // channels of dL/dy
  channels: u32,
  tap_m: u32, // channels rounded up to the kernel's rows of one tap, 4 or 8
  height: u32, // of the source, after the upsampling
  width: u32,
  dy_height: u32,
  dy_width: u32,
  taps_x: u32,
  stride: u32,
  pad_top: u32,
  pad_left: u32,
  tiles_m: u32,
  tiles_n: u32,
  slices: u32,
  slice_rows: u32, // image rows of dL/dy in a slice
  rows: u32, // in all
  upsample: u32, // 1 where the source is read enlarged twice, nearest
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> dy: array<D>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

const NOWHERE = 0xffffffffu;

// Elements before this slice's result.
var<private> y_base: u32;

// Where the four filter rows of a block read: offset by the tap, and first channel.
struct Rows {
  y: i32,
  x: i32,
  c: u32,
}

fn rows_at(m: u32) -> Rows {
  let tap = m / params.tap_m;
  return Rows(i32(tap / params.taps_x) - i32(params.pad_top), i32(tap % params.taps_x) - i32(params.pad_left), m % params.tap_m);
}

fn source_row(r: Rows, image: u32, oy: u32) -> u32 {
  let iy = u32(i32(oy * params.stride) + r.y);
  let at = (image * (params.height >> params.upsample) + (iy >> params.upsample)) * (params.width >> params.upsample);
  return select(NOWHERE, at, iy < params.height);
}

// include lib/cut_columns.wgsl

// X4(…) and D4(…) take a scalar or a vec4 of their type alike: the branch not taken must still compile.
fn read_x(i: u32) -> vec4<f32> {
  if (X_WIDE) {
    return vec4<f32>(X4(x[i / 4u]));
  }
  return vec4<f32>(vec4<f32>(X4(x[i])).x, vec4<f32>(X4(x[i + 1u])).x, vec4<f32>(X4(x[i + 2u])).x, vec4<f32>(X4(x[i + 3u])).x);
}

fn read_dy(i: u32) -> vec4<f32> {
  if (D_WIDE) {
    return vec4<f32>(D4(dy[i / 4u]));
  }
  return vec4<f32>(vec4<f32>(D4(dy[i])).x, vec4<f32>(D4(dy[i + 1u])).x, vec4<f32>(D4(dy[i + 2u])).x, vec4<f32>(D4(dy[i + 3u])).x);
}

fn read_pixel(r: Rows, source: u32, ox: u32) -> vec4<f32> {
  let ix = u32(i32(ox * params.stride) + r.x);
  let at = source + (ix >> params.upsample);
  return select(vec4<f32>(), read_x(at * params.channels + r.c), source != NOWHERE && ix < params.width && (!COLUMN_EDGE || ox < params.dy_width));
}

// Column j is filter row m + j over pixels ox..ox+4.
fn read_block_x(r: Rows, source: u32, ox: u32) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(read_pixel(r, source, ox), read_pixel(r, source, ox + 1u), read_pixel(r, source, ox + 2u), read_pixel(r, source, ox + 3u)));
}

// The filter has no rows for the channels that rounding up added.
fn result_row(m: u32) -> u32 {
  return select(NOWHERE, m / params.tap_m * params.channels + m % params.tap_m, m % params.tap_m < params.channels);
}
