// Gradient of nearest-neighbour resampling: each element of dx adds, in fixed order, the elements of dy that were read from it.
// floor(i·H/H2) = h for i from ceil(h·H2/H) up to, not including, ceil((h+1)·H2/H).
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias Y = f32;
const WIDTH = 1u;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V in dx
  channels: u32, // in V
  x_height: u32,
  x_width: u32,
  y_height: u32,
  y_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<Y>;
@group(0) @binding(2) var<storage, read_write> dx: array<X>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

fn first(h: u32, from_size: u32, to_size: u32) -> u32 {
  return (h * to_size + from_size - 1u) / from_size;
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let pixel = i / params.channels;
  let column = pixel % params.x_width;
  let line = pixel / params.x_width;
  let row = line % params.x_height;
  let n = line / params.x_height;
  let row_end = first(row + 1u, params.x_height, params.y_height);
  let column_begin = first(column, params.x_width, params.y_width);
  let column_end = first(column + 1u, params.x_width, params.y_width);
  var total = V(0.0);
  for (var r = first(row, params.x_height, params.y_height); r < row_end; r++) {
    for (var c = column_begin; c < column_end; c++) {
      total += V(dy[((n * params.y_height + r) * params.y_width + c) * params.channels + i % params.channels]);
    }
  }
  dx[i] = X(epilogue(total, i * WIDTH, i % params.channels * WIDTH));
}
