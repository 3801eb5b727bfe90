// Cross entropy of rows of logits [rows, classes] with one class index each: log Σ exp(x) − x[label], and its gradient.
// `direct`: an invocation per row. `tiled`: a workgroup per row, whose lanes read neighbouring addresses.
// A label outside 0…classes−1 has loss 0 and no gradient.
// include lib/index.wgsl
// include lib/log.wgsl
// include lib/workgroup.wgsl
// prologue
alias X = f32; // logits and their gradient
alias I = i32;
alias DY = f32;
// end prologue

struct Params {
  rows: u32,
  classes: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<X>;
@group(0) @binding(2) var<storage, read> labels: array<I>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<DY>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<X>;

// e^(x − top). The limit goes on x: x − top itself overflows for a mask of −3e38.
fn power(x: f32, top: f32) -> f32 {
  return exp(max(x, top - 87.0) - top);
}

fn row_max(row: u32, first: u32, step: u32) -> f32 {
  var top = -3.0e38;
  for (var i = first; i < params.classes; i += step) {
    top = max(top, f32(logits[row * params.classes + i]));
  }
  return top;
}

fn row_sum(row: u32, first: u32, step: u32, top: f32) -> f32 {
  var total = 0.0;
  for (var i = first; i < params.classes; i += step) {
    total += power(f32(logits[row * params.classes + i]), top);
  }
  return total;
}

fn has_label(row: u32) -> bool {
  return labels[row] >= I(0) && labels[row] < I(params.classes);
}

fn write_loss(row: u32, top: f32, total: f32) {
  // The difference first: top + log Σ would lose the logarithm's digits far from zero.
  var value = 0.0;
  if (has_label(row)) {
    value = (top - f32(logits[row * params.classes + u32(labels[row])])) + log_exact(total);
  }
  loss[row] = value;
}

fn write_gradient(row: u32, first: u32, step: u32, top: f32, total: f32) {
  let factor = select(0.0, f32(dy[row]), has_label(row));
  for (var i = first; i < params.classes; i += step) {
    let at = row * params.classes + i;
    let probability = power(f32(logits[at]), top) / total;
    dlogits[at] = X(factor * (probability - select(0.0, 1.0, I(i) == labels[row])));
  }
}

@compute @workgroup_size(16)
fn direct(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 16u + lane;
  if (row >= params.rows) {
    return;
  }
  let top = row_max(row, 0u, 1u);
  write_loss(row, top, row_sum(row, 0u, 1u, top));
}

@compute @workgroup_size(64)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let top = workgroup_max(row_max(row, lane, 64u), lane);
  let total = workgroup_sum(row_sum(row, lane, 64u, top), lane);
  if (lane == 0u) {
    write_loss(row, top, total);
  }
}

@compute @workgroup_size(16)
fn direct_grad(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 16u + lane;
  if (row >= params.rows) {
    return;
  }
  let top = row_max(row, 0u, 1u);
  write_gradient(row, 0u, 1u, top, row_sum(row, 0u, 1u, top));
}

@compute @workgroup_size(64)
fn tiled_grad(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let top = workgroup_max(row_max(row, lane, 64u), lane);
  let total = workgroup_sum(row_sum(row, lane, 64u, top), lane);
  write_gradient(row, lane, 64u, top, total);
}
