// Convolution as a matrix product (conv2d.wgsl, conv2d_tiled.wgsl): rows m are pixels of the result, columns n its channels, and k runs over
// filter taps and within a tap over the source's channels, rounded up to 4, so that a block of 4 never straddles two taps.
//
// The same product is the gradient of the input: the source is then dL/dy, the filter is read transposed, and a result pixel only meets the
// taps of its own phase (y + pad) mod stride. Phases are worked on one after the other (the outermost part of the tile index), so that all
// pixels of a tile meet the same taps and none is multiplied by the zeros that lie between strided pixels.
struct Params {
  m: u32, // pixels of the result
  n: u32, // channels of the result
  channels: u32, // of the source
  tap_k: u32, // channels rounded up to the step of the kernel's loop, 1 or 4
  height: u32, // of the source, after the upsampling
  width: u32,
  y_height: u32, // of the result
  y_width: u32,
  rows: u32, // of the result in one phase
  columns: u32,
  phase_m: u32, // pixels of the result in one phase
  taps_y: u32,
  taps_x: u32,
  stride: u32,
  pad_top: u32,
  pad_left: u32,
  tiles_m: u32, // of one phase
  tiles_n: u32,
  slices: u32, // parts that k is split into
  slice_k: u32,
  upsample: u32, // 1 where the source is read enlarged twice, nearest
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

const NOWHERE = 0xffffffffu;

// Elements before this slice's result.
var<private> y_base: u32;

// Taps that one phase of the result meets: first, first + step, …
struct Taps {
  first: vec2<u32>,
  count: vec2<u32>,
}

fn taps_of(phase: u32) -> Taps {
  let size = vec2<u32>(params.taps_y, params.taps_x);
  if (!GRADIENT) {
    return Taps(vec2<u32>(0u), size);
  }
  let first = (vec2<u32>(phase / params.stride, phase % params.stride) + vec2<u32>(params.pad_top, params.pad_left)) % params.stride;
  return Taps(first, select(vec2<u32>(0u), (size - first + params.stride - 1u) / params.stride, size > first));
}

// Four neighbouring pixels of the result: image, and the source position that tap 0 of the phase reads.
struct Pixels {
  image: vec4<u32>,
  y: vec4<i32>,
  x: vec4<i32>,
}

fn pixels_at(m: u32, phase: u32) -> Pixels {
  let i = vec4<u32>(m) + vec4<u32>(0u, 1u, 2u, 3u);
  let row = vec4<i32>(i / params.columns % params.rows);
  let column = vec4<i32>(i % params.columns);
  let image = i / (params.columns * params.rows);
  let pad = vec2<i32>(i32(params.pad_top), i32(params.pad_left));
  if (GRADIENT) {
    let offset = (vec2<i32>(i32(phase / params.stride), i32(phase % params.stride)) + pad) / i32(params.stride);
    return Pixels(image, row + offset.x, column + offset.y);
  }
  return Pixels(image, row * i32(params.stride) - pad.x, column * i32(params.stride) - pad.y);
}

// First elements of the four source pixels that the `tap`-th tap (row, column) of the phase reads, NOWHERE outside the image.
fn sources(p: Pixels, tap: vec2<u32>) -> vec4<u32> {
  let t = select(vec2<i32>(tap), -vec2<i32>(tap), GRADIENT);
  let iy = vec4<u32>(p.y + t.x);
  let ix = vec4<u32>(p.x + t.y);
  // Negative positions are large unsigned ones.
  let inside = (iy < vec4<u32>(params.height)) & (ix < vec4<u32>(params.width)) & (p.image < vec4<u32>(params.m / (params.y_height * params.y_width)));
  let shift = vec4<u32>(params.upsample);
  let at = (p.image * (params.height >> params.upsample) + (iy >> shift)) * (params.width >> params.upsample) + (ix >> shift);
  return select(vec4<u32>(NOWHERE), at * params.channels, inside);
}

// Number of the filter's tap.
fn filter_tap(taps: Taps, tap: vec2<u32>) -> u32 {
  let t = taps.first + tap * select(1u, params.stride, GRADIENT);
  return t.x * params.taps_x + t.y;
}

// Length of the sums within a tap.
fn reduction() -> u32 {
  return params.channels;
}

// Stored rows of the filter before the tap's first.
fn filter_row(taps: Taps, tap: vec2<u32>) -> u32 {
  return filter_tap(taps, tap) * select(params.channels, params.n, GRADIENT);
}

// Four neighbours in memory. X4(…) takes a scalar or a vec4 of X's type alike: the branch not taken must still compile.
fn read_x(i: u32) -> vec4<f32> {
  if (X_WIDE) {
    return vec4<f32>(X4(x[i / 4u]));
  }
  return vec4<f32>(vec4<f32>(X4(x[i])).x, vec4<f32>(X4(x[i + 1u])).x, vec4<f32>(X4(x[i + 2u])).x, vec4<f32>(X4(x[i + 3u])).x);
}

fn read_pixel(source: u32, c: u32) -> vec4<f32> {
  let v = read_x(source + c);
  if (CHANNEL_EDGE) {
    return select(vec4<f32>(), v, vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(select(params.channels, 0u, source == NOWHERE)));
  }
  return select(v, vec4<f32>(), source == NOWHERE);
}

// Column j is channels c..c+4 of source pixel j.
fn read_block_x(source: vec4<u32>, c: u32) -> mat4x4<f32> {
  return mat4x4<f32>(read_pixel(source.x, c), read_pixel(source.y, c), read_pixel(source.z, c), read_pixel(source.w, c));
}

// include lib/cut_columns.wgsl

// Column j is the filter (lib/weights.wgsl) from source channel c + j to result channels n..n+4; `row` is from filter_row.
fn read_block_w(row: u32, c: u32, n: u32) -> mat4x4<f32> {
  let b = weight_block(row, c, n);
  if (!CHANNEL_EDGE) {
    return b;
  }
  return cut_columns(b, c, params.channels);
}

// Row of the result that holds pixel m of the phase, beyond the last where there is none.
fn result_row(m: u32, phase: u32) -> u32 {
  if (m >= params.phase_m) {
    return NOWHERE;
  }
  if (!GRADIENT) {
    return m;
  }
  let row = m / params.columns % params.rows * params.stride + phase / params.stride;
  let column = m % params.columns * params.stride + phase % params.stride;
  if (row >= params.y_height || column >= params.y_width) {
    return NOWHERE;
  }
  return (m / (params.columns * params.rows) * params.y_height + row) * params.y_width + column;
}
