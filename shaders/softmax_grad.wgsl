// Gradient of softmax from its result: dx = y·(dy − Σ dy·y) over the rows of [rows, columns]. Variants as in softmax.wgsl.
// include lib/index.wgsl
// prologue
alias V = f32;
alias Y = f32;
alias DY = f32;
alias DX = f32;
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
@group(0) @binding(1) var<storage, read> y: array<Y>;
@group(0) @binding(2) var<storage, read> dy: array<DY>;
@group(0) @binding(3) var<storage, read_write> dx: array<DX>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

fn row_dot(base: u32, first: u32, step: u32) -> f32 {
  var total = V(0.0);
  for (var i = first; i < params.columns / WIDTH; i += step) {
    total += V(y[base + i]) * V(dy[base + i]);
  }
  return lane_sum(total);
}

fn write_row(base: u32, first: u32, step: u32, dot: f32) {
  for (var i = first; i < params.columns / WIDTH; i += step) {
    dx[base + i] = DX(epilogue(V(y[base + i]) * (V(dy[base + i]) - V(dot)), (base + i) * WIDTH, i * WIDTH));
  }
}

@compute @workgroup_size(16)
fn direct(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 16u + lane;
  if (row >= params.rows) {
    return;
  }
  let base = row * (params.columns / WIDTH);
  write_row(base, 0u, 1u, row_dot(base, 0u, 1u));
}

@compute @workgroup_size(64)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let base = row * (params.columns / WIDTH);
  write_row(base, lane, 64u, workgroup_sum(row_dot(base, lane, 64u), lane));
}
