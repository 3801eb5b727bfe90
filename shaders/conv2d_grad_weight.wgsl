// Gradient of a convolution's filter without workgroup memory: see conv2d.wgsl, whose scheme this is. `forward` computes 8 filter rows of 8
// result channels, `narrow` 8 of 4.
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
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_grad_weight_operands.wgsl
// include lib/store_row_4.wgsl

fn tile_row(m: u32) -> u32 {
  return result_row(m);
}

// include lib/block_tile.wgsl

// Column j is dL/dy of pixel ox + j of the row, channels n..n+4.
fn read_block_dy(row: u32, ox: u32, n: u32) -> mat4x4<f32> {
  let i = (row * params.dy_width + ox) * params.n + n;
  let b = mat4x4<f32>(read_dy(i), read_dy(i + params.n), read_dy(i + 2u * params.n), read_dy(i + 3u * params.n));
  if (!COLUMN_EDGE) {
    return b;
  }
  return cut_columns(b, ox, params.dy_width);
}

// The invocation's tile of `height` filter rows and `width` channels, and its slice.
fn tile_at(i: u32, height: u32, width: u32) -> vec3<u32> {
  let slice = i / (params.tiles_n * params.tiles_m);
  y_base = slice * params.m * params.n;
  return vec3<u32>(i / params.tiles_n % params.tiles_m * height, i % params.tiles_n * width, slice);
}

override LANES = 8u;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * LANES + lane, 8u, 8u);
  if (tile.z >= params.slices) {
    return;
  }
  let rows_0 = rows_at(tile.x);
  let rows_1 = rows_at(tile.x + 4u);
  for (var row = tile.z * params.slice_rows; row < min((tile.z + 1u) * params.slice_rows, params.rows); row++) {
    let image = row / params.dy_height;
    let oy = row % params.dy_height;
    let source_0 = source_row(rows_0, image, oy);
    let source_1 = source_row(rows_1, image, oy);
    for (var ox = 0u; ox < params.dy_width; ox += 4u) {
      let b0 = read_block_dy(row, ox, tile.y);
      let b1 = read_block_dy(row, ox, tile.y + 4u);
      let x0 = read_block_x(rows_0, source_0, ox);
      c00 += b0 * x0;
      c01 += b1 * x0;
      let x1 = read_block_x(rows_1, source_1, ox);
      c10 += b0 * x1;
      c11 += b1 * x1;
    }
  }
  store_blocks(tile.x, tile.y, 8u, 8u);
}

@compute @workgroup_size(LANES)
fn narrow(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * LANES + lane, 8u, 4u);
  if (tile.z >= params.slices) {
    return;
  }
  let rows_0 = rows_at(tile.x);
  let rows_1 = rows_at(tile.x + 4u);
  for (var row = tile.z * params.slice_rows; row < min((tile.z + 1u) * params.slice_rows, params.rows); row++) {
    let image = row / params.dy_height;
    let oy = row % params.dy_height;
    let source_0 = source_row(rows_0, image, oy);
    let source_1 = source_row(rows_1, image, oy);
    for (var ox = 0u; ox < params.dy_width; ox += 4u) {
      let b0 = read_block_dy(row, ox, tile.y);
      c00 += b0 * read_block_x(rows_0, source_0, ox);
      c10 += b0 * read_block_x(rows_1, source_1, ox);
    }
  }
  store_blocks(tile.x, tile.y, 8u, 4u);
}
