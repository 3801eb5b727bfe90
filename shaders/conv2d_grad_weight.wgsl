// Gradient of a convolution's filter, as a matrix product: rows m are (tap, source channel), columns n the result's channels, and k runs
// over pixels of dL/dy, row by row of the image, its width rounded up to 4, so that a block of 4 lies in one row.
// Image rows are split into slices, whose partial sums a second pass adds in their order: the sum is long and the result is small.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias D = vec4<f32>;
alias D4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const D_WIDE = true;
const COLUMN_EDGE = false; // the width of dL/dy is not divisible by 4
const UPSAMPLE = false; // the source is read enlarged twice, nearest
// end prologue
// include lib/pointwise.wgsl

struct Params {
  m: u32, // taps · source channels
  n: u32, // channels of dL/dy
  channels: u32,
  tap_m: u32, // channels rounded up to 4
  height: u32, // of the source, after the upsampling if UPSAMPLE
  width: u32,
  dy_height: u32,
  dy_width: u32,
  row_k: u32, // dy_width rounded up to 4
  taps_x: u32,
  stride: u32,
  pad_top: u32,
  pad_left: u32,
  tiles_m: u32,
  tiles_n: u32,
  slices: u32,
  slice_rows: u32, // image rows of dL/dy in a slice
  rows: u32, // in all
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> dy: array<D>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32) -> V {
  return v;
}
// end epilogue

// include lib/store_row_4.wgsl

const TILE_STEP = 4u;
const NOWHERE = 0xffffffffu;

// Where the four filter rows of a block read: offset by the tap, and first channel.
struct Rows {
  y: i32,
  x: i32,
  c: u32,
}

var<private> m_origin: u32;
var<private> n_origin: u32;
var<private> y_base: u32;
var<private> rows_0: Rows;
var<private> rows_1: Rows;
var<private> rows_2: Rows;
var<private> rows_3: Rows;
// Of the current image row: first pixel of the source row that each block reads, NOWHERE outside the image.
var<private> source_0: u32;
var<private> source_1: u32;
var<private> source_2: u32;
var<private> source_3: u32;
var<private> row: u32;
var<private> row_k: u32;
var<private> next_k: u32;

fn rows_at(m: u32) -> Rows {
  let tap = m / params.tap_m;
  return Rows(i32(tap / params.taps_x) - i32(params.pad_top), i32(tap % params.taps_x) - i32(params.pad_left), m % params.tap_m);
}

fn source_row(r: Rows, image: u32, oy: u32) -> u32 {
  let iy = u32(i32(oy * params.stride) + r.y);
  var at = (image * params.height + iy) * params.width;
  if (UPSAMPLE) {
    at = (image * (params.height / 2u) + iy / 2u) * (params.width / 2u);
  }
  return select(NOWHERE, at, iy < params.height);
}

fn stage_begins(k: u32) -> bool {
  return k == next_k;
}

// Called where an image row begins.
fn stage(k: u32) {
  row_k = k;
  next_k = k + params.row_k;
  row = k / params.row_k;
  let image = row / params.dy_height;
  let oy = row % params.dy_height;
  source_0 = source_row(rows_0, image, oy);
  if (TILE_BLOCKS > 1u) {
    source_1 = source_row(rows_1, image, oy);
  }
  if (TILE_BLOCKS > 2u) {
    source_2 = source_row(rows_2, image, oy);
    source_3 = source_row(rows_3, image, oy);
  }
}

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
  let at = source + select(ix, ix / 2u, UPSAMPLE);
  return select(vec4<f32>(), read_x(at * params.channels + r.c), source != NOWHERE && ix < params.width && (!COLUMN_EDGE || ox < params.dy_width));
}

// Column j is filter row m + j over pixels ox..ox+4.
fn read_block_x(r: Rows, source: u32, ox: u32) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(read_pixel(r, source, ox), read_pixel(r, source, ox + 1u), read_pixel(r, source, ox + 2u), read_pixel(r, source, ox + 3u)));
}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  if (m == 0u) {
    return read_block_x(rows_0, source_0, k - row_k);
  }
  if (m == 4u) {
    return read_block_x(rows_1, source_1, k - row_k);
  }
  if (m == 8u) {
    return read_block_x(rows_2, source_2, k - row_k);
  }
  return read_block_x(rows_3, source_3, k - row_k);
}

fn load_b(k: u32, n: u32) -> mat4x4<f32> {
  let ox = k - row_k;
  let i = (row * params.dy_width + ox) * params.n + n_origin + n;
  let b = mat4x4<f32>(read_dy(i), read_dy(i + params.n), read_dy(i + 2u * params.n), read_dy(i + 3u * params.n));
  if (!COLUMN_EDGE) {
    return b;
  }
  let zero = vec4<f32>();
  return mat4x4<f32>(b[0], select(zero, b[1], ox + 1u < params.dy_width), select(zero, b[2], ox + 2u < params.dy_width), select(zero, b[3], ox + 3u < params.dy_width));
}

// The filter has no rows for the channels that rounding up added.
fn result_row(m: u32) -> u32 {
  return select(NOWHERE, m / params.tap_m * params.channels + m % params.tap_m, m % params.tap_m < params.channels);
}

fn store_block(m: u32, n: u32, c: mat4x4<f32>) {
  store_row(result_row(m_origin + m), n_origin + n, c[0]);
  store_row(result_row(m_origin + m + 1u), n_origin + n, c[1]);
  store_row(result_row(m_origin + m + 2u), n_origin + n, c[2]);
  store_row(result_row(m_origin + m + 3u), n_origin + n, c[3]);
}

// include lib/tile_8x8.wgsl

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 32u + lane;
  let slice = i / (params.tiles_n * params.tiles_m);
  if (slice >= params.slices) {
    return;
  }
  let size = 4u * TILE_BLOCKS;
  m_origin = i / params.tiles_n % params.tiles_m * size;
  n_origin = i % params.tiles_n * size;
  y_base = slice * params.m * params.n;
  rows_0 = rows_at(m_origin);
  if (TILE_BLOCKS > 1u) {
    rows_1 = rows_at(m_origin + 4u);
  }
  if (TILE_BLOCKS > 2u) {
    rows_2 = rows_at(m_origin + 8u);
    rows_3 = rows_at(m_origin + 12u);
  }
  let k = slice * params.slice_rows * params.row_k;
  next_k = k;
  compute_tile(0u, 0u, k, min(slice * params.slice_rows + params.slice_rows, params.rows) * params.row_k);
}
