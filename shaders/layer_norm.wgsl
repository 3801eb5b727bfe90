// LayerNorm (Ba et al. 2016) and, with CENTERED = false, RMSNorm (Zhang & Sennrich 2019) over the rows of x [rows, channels].
// `direct`: an invocation per row. `tiled`: a workgroup per row, whose lanes read neighbouring addresses.
// The variance is a second pass about the mean (the row is in cache by then): one pass loses digits to outlier channels.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // x and y
alias W = f32; // gamma
alias B = f32; // beta
const WIDTH = 1u;
const CENTERED = true;
// end prologue
// include lib/lanes_1.wgsl
// include lib/pointwise.wgsl
// include lib/workgroup.wgsl

struct Params {
  rows: u32,
  channels: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> gamma: array<W>;
@group(0) @binding(3) var<storage, read> beta: array<B>;
@group(0) @binding(4) var<storage, read_write> y: array<X>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

// Partial sums of one invocation over the vectors first, first + step, … of a row that begins at vector `base`.
fn row_sum(base: u32, first: u32, step: u32) -> f32 {
  var total = V(0.0);
  for (var i = first; i < params.channels / WIDTH; i += step) {
    total += V(x[base + i]);
  }
  return lane_sum(total);
}

fn row_squares(base: u32, first: u32, step: u32, mean: f32) -> f32 {
  var total = V(0.0);
  for (var i = first; i < params.channels / WIDTH; i += step) {
    let d = V(x[base + i]) - V(mean);
    total += d * d;
  }
  return lane_sum(total);
}

fn write_row(base: u32, first: u32, step: u32, mean: f32, rstd: f32) {
  for (var i = first; i < params.channels / WIDTH; i += step) {
    let v = (V(x[base + i]) - V(mean)) * V(rstd) * V(gamma[i]) + V(beta[i]);
    y[base + i] = X(epilogue(v, (base + i) * WIDTH, i * WIDTH));
  }
}

@compute @workgroup_size(16)
fn direct(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 16u + lane;
  if (row >= params.rows) {
    return;
  }
  let n = f32(params.channels);
  let base = row * (params.channels / WIDTH);
  var mean = 0.0;
  if (CENTERED) {
    mean = row_sum(base, 0u, 1u) / n;
  }
  write_row(base, 0u, 1u, mean, inverseSqrt(row_squares(base, 0u, 1u, mean) / n + params.eps));
}

@compute @workgroup_size(64)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let n = f32(params.channels);
  let base = row * (params.channels / WIDTH);
  var mean = 0.0;
  if (CENTERED) {
    mean = workgroup_sum(row_sum(base, lane, 64u), lane) / n;
  }
  let rstd = inverseSqrt(workgroup_sum(row_squares(base, lane, 64u, mean), lane) / n + params.eps);
  write_row(base, lane, 64u, mean, rstd);
}
