// Gradient of a convolution's filter without workgroup memory: see conv2d.wgsl, whose scheme this is.
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
// include lib/conv2d_grad_weight_operands.wgsl
// include lib/store_row_4.wgsl

const TILE_STEP = 4u;

var<private> m_origin: u32;
var<private> n_origin: u32;
var<private> rows_0: Rows;
var<private> rows_1: Rows;
// Of the current image row: first pixel of the source row that each block reads, NOWHERE outside the image.
var<private> source_0: u32;
var<private> source_1: u32;
var<private> row: u32;
var<private> row_k: u32;
var<private> next_k: u32;

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
}

fn load_a(m: u32, k: u32) -> mat4x4<f32> {
  if (m == 0u) {
    return read_block_x(rows_0, source_0, k - row_k);
  }
  return read_block_x(rows_1, source_1, k - row_k);
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
  let k = slice * params.slice_rows * params.row_k;
  next_k = k;
  compute_tile(0u, 0u, k, min(slice * params.slice_rows + params.slice_rows, params.rows) * params.row_k);
}
