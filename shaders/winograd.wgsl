// Convolution with 3x3 filters at stride 1 as Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2015): transform filter and image, multiply
// as 16 matrix products, transform back. 16 multiplications for four pixels where the sum takes 36.
//   filter: filters[16, channels, outputs] of w [3,3,C,K]; as the gradient wants it (GRADIENT): turned by 180 degrees, with C and K in each other's role
//   input:  image[16, tiles, channels] of source (x, or dy of the gradient); a tile covers 4x4 pixels, the next begins two further
//   output: y of products[16, tiles, outputs]
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias W = f32;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const GRADIENT = false;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  channels: u32, // of source
  outputs: u32, // channels of y
  tiles_y: u32,
  tiles_x: u32,
  tiles: u32, // of all images
  height: u32, // of source, after the upsampling
  width: u32,
  y_height: u32,
  y_width: u32,
  pad_top: u32, // modulo 2³²: the gradient's may be negative
  pad_left: u32,
  upsample: u32, // 1: source is read enlarged twice
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> w: array<W>;
@group(0) @binding(2) var<storage, read_write> filters: array<f32>;
@group(0) @binding(3) var<storage, read> source: array<X>;
@group(0) @binding(4) var<storage, read_write> image: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> products: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

fn tap(r: u32, s: u32, channel: u32, output: u32) -> f32 {
  let at = select(r * 3u + s, 8u - r * 3u - s, GRADIENT);
  let index = select((at * params.channels + channel) * params.outputs + output, (at * params.outputs + output) * params.channels + channel, GRADIENT);
  return f32(w[index]);
}

@compute @workgroup_size(64)
fn filter_transform(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let size = params.channels * params.outputs;
  if (i >= size) {
    return;
  }
  let channel = i / params.outputs;
  let output = i % params.outputs;
  // Columns first: row r of the 3x3 filter becomes four numbers.
  var rows: array<vec4<f32>, 3>;
  for (var r = 0u; r < 3u; r++) {
    let a = tap(r, 0u, channel, output);
    let b = tap(r, 1u, channel, output);
    let c = tap(r, 2u, channel, output);
    rows[r] = vec4(a, 0.5 * (a + b + c), 0.5 * (a - b + c), c);
  }
  let sum = 0.5 * (rows[0] + rows[2]);
  let half = 0.5 * rows[1];
  write_filter(0u, rows[0], i, size);
  write_filter(4u, sum + half, i, size);
  write_filter(8u, sum - half, i, size);
  write_filter(12u, rows[2], i, size);
}

fn write_filter(first: u32, row: vec4<f32>, i: u32, size: u32) {
  filters[first * size + i] = row.x;
  filters[(first + 1u) * size + i] = row.y;
  filters[(first + 2u) * size + i] = row.z;
  filters[(first + 3u) * size + i] = row.w;
}

// Pixel (row, column) of image n, 0 outside.
fn pixel(n: u32, row: u32, column: u32, group: u32) -> vec4<f32> {
  if (row >= params.height || column >= params.width) {
    return vec4(0.0);
  }
  let at = (n * (params.height >> params.upsample) + (row >> params.upsample)) * (params.width >> params.upsample) + (column >> params.upsample);
  return vec4<f32>(source[at * (params.channels / 4u) + group]);
}

@compute @workgroup_size(64)
fn input_transform(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let groups = params.channels / 4u;
  let size = params.tiles * groups;
  if (i >= size) {
    return;
  }
  let tile = i / groups;
  let group = i % groups;
  let n = tile / (params.tiles_y * params.tiles_x);
  let top = tile / params.tiles_x % params.tiles_y * 2u - params.pad_top;
  let left = tile % params.tiles_x * 2u - params.pad_left;
  let a = input_row(n, top, left, group);
  let b = input_row(n, top + 1u, left, group);
  let c = input_row(n, top + 2u, left, group);
  let d = input_row(n, top + 3u, left, group);
  write_input(0u, a - c, i, size);
  write_input(4u, b + c, i, size);
  write_input(8u, c - b, i, size);
  write_input(12u, b - d, i, size);
}

// Four pixels of a row, transformed along it: a column of four channels each.
fn input_row(n: u32, row: u32, left: u32, group: u32) -> mat4x4<f32> {
  let a = pixel(n, row, left, group);
  let b = pixel(n, row, left + 1u, group);
  let c = pixel(n, row, left + 2u, group);
  let d = pixel(n, row, left + 3u, group);
  return mat4x4(a - c, b + c, c - b, b - d);
}

fn write_input(first: u32, row: mat4x4<f32>, i: u32, size: u32) {
  image[first * size + i] = row[0];
  image[(first + 1u) * size + i] = row[1];
  image[(first + 2u) * size + i] = row[2];
  image[(first + 3u) * size + i] = row[3];
}

@compute @workgroup_size(64)
fn output_transform(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let groups = params.outputs / 4u;
  let size = params.tiles * groups;
  if (i >= size) {
    return;
  }
  let tile = i / groups;
  let column = i % groups * 4u;
  let n = tile / (params.tiles_y * params.tiles_x);
  let row = tile / params.tiles_x % params.tiles_y * 2u;
  let left = tile % params.tiles_x * 2u;
  let a = output_row(0u, i, size);
  let b = output_row(4u, i, size);
  let c = output_row(8u, i, size);
  let d = output_row(12u, i, size);
  let upper = a + b + c;
  let lower = b - c - d;
  store(n, row, left, column, upper[0]);
  store(n, row, left + 1u, column, upper[1]);
  store(n, row + 1u, left, column, lower[0]);
  store(n, row + 1u, left + 1u, column, lower[1]);
}

// Two pixels of four products.
fn output_row(first: u32, i: u32, size: u32) -> mat2x4<f32> {
  let a = products[first * size + i];
  let b = products[(first + 1u) * size + i];
  let c = products[(first + 2u) * size + i];
  let d = products[(first + 3u) * size + i];
  return mat2x4(a + b + c, b - c - d);
}

fn store(n: u32, row: u32, left: u32, column: u32, value: vec4<f32>) {
  if (row >= params.y_height || left >= params.y_width) {
    return;
  }
  let at = ((n * params.y_height + row) * params.y_width + left) * params.outputs + column;
  y[at / 4u] = Y(epilogue(value, at, column));
}
