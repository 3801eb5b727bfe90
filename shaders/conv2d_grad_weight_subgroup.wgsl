// Gradient of a convolution's filter for software adapters with subgroups of 8 lanes (llvmpipe): see matmul_subgroup.wgsl.
// A subgroup computes 32 filter rows of 32 result channels, four channels a lane, and each lane loads four of every eight rows' source at one of four pixels.
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
const BY_TERMS = true;
const ROWS = 32u;
// include lib/subgroup_tile.wgsl

// Column j is dL/dy of channels n..n+4 at pixel ox + j of an image row.
fn read_block_dy(row: u32, ox: u32, n: u32) -> mat4x4<f32> {
  let i = (row * params.dy_width + ox) * params.n + n;
  let dy = mat4x4<f32>(read_dy(i), read_dy(i + params.n), read_dy(i + 2u * params.n), read_dy(i + 3u * params.n));
  if (!COLUMN_EDGE) {
    return dy;
  }
  return cut_columns(dy, ox, params.dy_width);
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let slice = i / (params.tiles_n * params.tiles_m);
  if (slice >= params.slices) {
    return;
  }
  let m = i / params.tiles_n % params.tiles_m * ROWS;
  let n = i % params.tiles_n * 32u + lane * 4u;
  let own = m + lane / 4u * 4u;
  let rows0 = rows_at(own);
  let rows1 = rows_at(own + 8u);
  let rows2 = rows_at(own + 16u);
  let rows3 = rows_at(own + 24u);
  var sums = Tile();
  for (var row = slice * params.slice_rows; row < min((slice + 1u) * params.slice_rows, params.rows); row++) {
    let image = row / params.dy_height;
    let oy = row % params.dy_height;
    let source0 = source_row(rows0, image, oy);
    let source1 = source_row(rows1, image, oy);
    let source2 = source_row(rows2, image, oy);
    let source3 = source_row(rows3, image, oy);
    for (var ox = 0u; ox < params.dy_width; ox += 4u) {
      // All loads come before all products: see matmul_subgroup.wgsl.
      let dy = read_block_dy(row, ox, n);
      let pixel = ox + lane % 4u;
      let x = mat4x4<f32>(
        read_pixel(rows0, source0, pixel),
        read_pixel(rows1, source1, pixel),
        read_pixel(rows2, source2, pixel),
        read_pixel(rows3, source3, pixel),
      );
      sums = add_product(sums, x, dy);
    }
  }
  y_base = slice * params.m * params.n;
  // A loop that is not unrolled: see matmul_subgroup.wgsl.
  var result = array<Sums, 4>(sums.c0, sums.c1, sums.c2, sums.c3);
  for (var r = 0u; r < ROWS && m + r < params.tiles_m * ROWS; r++) {
    store_row(result_row(m + r), n, result[r / 8u][r % 8u]);
  }
}
