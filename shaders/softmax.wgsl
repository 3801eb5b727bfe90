// softmax over the rows of x [rows, columns]: maximum, sum of exponentials, quotient; the row is in cache after the first pass.
// `direct`: an invocation per row. `tiled`: a workgroup per row, whose lanes read neighbouring addresses.
// Finite throughout: WGSL has no infinity to rely on, so masks are large negative numbers and exponents stop at −87.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // x and y
const WIDTH = 1u;
// end prologue
// include lib/lanes_1.wgsl
// include lib/pointwise.wgsl
// include lib/workgroup.wgsl

struct Params {
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<X>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

// e^(x − top). The limit goes on x: x − top itself overflows for a mask of −3e38.
fn power(v: V, top: f32) -> V {
  return exp(max(v, V(top - 87.0)) - V(top));
}

fn row_max(base: u32, first: u32, step: u32) -> f32 {
  var top = V(-3.0e38);
  for (var i = first; i < params.columns / WIDTH; i += step) {
    top = max(top, V(x[base + i]));
  }
  return lane_max(top);
}

fn row_sum(base: u32, first: u32, step: u32, top: f32) -> f32 {
  var total = V(0.0);
  for (var i = first; i < params.columns / WIDTH; i += step) {
    total += power(V(x[base + i]), top);
  }
  return lane_sum(total);
}

fn write_row(base: u32, first: u32, step: u32, top: f32, total: f32) {
  let factor = 1.0 / total;
  for (var i = first; i < params.columns / WIDTH; i += step) {
    y[base + i] = X(epilogue(power(V(x[base + i]), top) * V(factor), (base + i) * WIDTH, i * WIDTH));
  }
}

@compute @workgroup_size(16)
fn direct(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 16u + lane;
  if (row >= params.rows) {
    return;
  }
  let base = row * (params.columns / WIDTH);
  let top = row_max(base, 0u, 1u);
  write_row(base, 0u, 1u, top, row_sum(base, 0u, 1u, top));
}

@compute @workgroup_size(64)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let base = row * (params.columns / WIDTH);
  let top = workgroup_max(row_max(base, lane, 64u), lane);
  let total = workgroup_sum(row_sum(base, lane, 64u, top), lane);
  write_row(base, lane, 64u, top, total);
}
