// Gradient of a convolution's filter for software adapters with subgroups of 8 lanes: see conv2d_subgroup.wgsl.
// A subgroup computes 32 filter rows of 16 result channels, four rows a lane, and each lane loads dL/dy of one of 8 pixels.
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
const COLUMN_EDGE = false; // the width of dL/dy is not divisible by 8
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_grad_weight_operands.wgsl
// include lib/store_row_4.wgsl
// include lib/subgroup_rows.wgsl

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let slice = i / (params.tiles_n * params.tiles_m);
  if (slice >= params.slices) {
    return;
  }
  let m = (i / params.tiles_n % params.tiles_m * 8u + lane) * 4u;
  let n = i % params.tiles_n * 16u;
  let rows = rows_at(m);
  var c0 = mat4x4<f32>();
  var c1 = mat4x4<f32>();
  var c2 = mat4x4<f32>();
  var c3 = mat4x4<f32>();
  for (var row = slice * params.slice_rows; row < min((slice + 1u) * params.slice_rows, params.rows); row++) {
    let source = source_row(rows, row / params.dy_height, row % params.dy_height);
    for (var ox = 0u; ox < params.dy_width; ox += 8u) {
      let at = (row * params.dy_width + ox + lane) * params.n + n;
      let inside = !COLUMN_EDGE || ox + lane < params.dy_width;
      let d0 = select(vec4<f32>(), read_dy(at), inside);
      let d1 = select(vec4<f32>(), read_dy(at + 4u), inside);
      let d2 = select(vec4<f32>(), read_dy(at + 8u), inside);
      let d3 = select(vec4<f32>(), read_dy(at + 12u), inside);
      let x0 = read_block_x(rows, source, ox);
      c0 += first_rows(d0) * x0;
      c1 += first_rows(d1) * x0;
      c2 += first_rows(d2) * x0;
      c3 += first_rows(d3) * x0;
      let x1 = read_block_x(rows, source, ox + 4u);
      c0 += last_rows(d0) * x1;
      c1 += last_rows(d1) * x1;
      c2 += last_rows(d2) * x1;
      c3 += last_rows(d3) * x1;
    }
  }
  y_base = slice * params.m * params.n;
  for (var j = 0u; j < 4u; j++) {
    let r = result_row(m + j);
    store_row(r, n, c0[j]);
    store_row(r, n + 4u, c1[j]);
    store_row(r, n + 8u, c2[j]);
    store_row(r, n + 12u, c3[j]);
  }
}
