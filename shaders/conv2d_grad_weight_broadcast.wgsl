// Gradient of a convolution's filter for software adapters with subgroups of 4 lanes (SwiftShader): a subgroup computes 8 filter rows of 16
// result channels, see lib/broadcast_tile.wgsl.
// include lib/index.wgsl
// prologue
alias X = f32;
alias X4 = vec4<f32>;
alias D = f32;
alias D4 = vec4<f32>;
alias Y = f32;
alias V = f32;
const X_WIDE = false;
const D_WIDE = false;
const COLUMN_EDGE = false; // the width of dL/dy is not divisible by 4
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_grad_weight_operands.wgsl
// include lib/store_row_1.wgsl
// include lib/broadcast_tile.wgsl
// include lib/broadcast_store.wgsl

fn lane_column(lane: u32, j: u32) -> u32 {
  return lane + 4u * j;
}

fn tile_row(m: u32) -> u32 {
  return result_row(m);
}

@compute @workgroup_size(4)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let slice = i / (params.tiles_n * params.tiles_m);
  if (slice >= params.slices) {
    return;
  }
  let m = i / params.tiles_n % params.tiles_m * 8u;
  let tile_n = i % params.tiles_n * 16u;
  let n = tile_n + lane;
  let place = rows_at(m);
  let along = vec4<u32>(0u, 1u, 2u, 3u);
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
    let dy_row = row * params.dy_width;
    for (var ox = 0u; ox < params.dy_width; ox += 4u) {
      let ix = vec4<u32>(vec4<i32>((ox + along) * params.stride) + place.x);
      // Not a shift by params.upsample: such adapters have one by constants only.
      let column = select(ix, ix >> vec4<u32>(1u), params.upsample == 1u);
      var inside = ix < vec4<u32>(params.width);
      if (COLUMN_EDGE) {
        inside = inside & (ox + along < vec4<u32>(params.dy_width));
      }
      let at_x = (source + column) * params.channels + place.c + lane;
      let upper = select(vec4<f32>(), vec4<f32>(f32(x[at_x.x]), f32(x[at_x.y]), f32(x[at_x.z]), f32(x[at_x.w])), inside);
      let lower = select(vec4<f32>(), vec4<f32>(f32(x[at_x.x + 4u]), f32(x[at_x.y + 4u]), f32(x[at_x.z + 4u]), f32(x[at_x.w + 4u])), inside);
      let at = (dy_row + ox) * params.n + n;
      let at_1 = at + params.n;
      let at_2 = at_1 + params.n;
      let at_3 = at_2 + params.n;
      var b = mat4x4<f32>(
        f32(dy[at]), f32(dy[at + 4u]), f32(dy[at + 8u]), f32(dy[at + 12u]),
        f32(dy[at_1]), f32(dy[at_1 + 4u]), f32(dy[at_1 + 8u]), f32(dy[at_1 + 12u]),
        f32(dy[at_2]), f32(dy[at_2 + 4u]), f32(dy[at_2 + 8u]), f32(dy[at_2 + 12u]),
        f32(dy[at_3]), f32(dy[at_3 + 4u]), f32(dy[at_3 + 8u]), f32(dy[at_3 + 12u]),
      );
      if (COLUMN_EDGE) {
        b = cut_columns(b, ox, params.dy_width);
      }
      multiply_rows(upper, lower, b);
    }
  }
  y_base = slice * params.m * params.n;
  store_tile(m, tile_n, lane);
}
