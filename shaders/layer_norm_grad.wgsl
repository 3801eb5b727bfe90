// Gradients of LayerNorm and RMSNorm (CENTERED = false) over rows. With x̂ = (x − mean)·rstd and g = γ·dy:
//   dx = rstd·(g − mean(g) − x̂·mean(g·x̂)), without mean(g) for RMSNorm;  dγ = Σ dy·x̂, dβ = Σ dy over rows.
// `direct` or `tiled` makes dx and leaves mean and rstd for `columns`, which sums bands of rows; `merge` adds the bands.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias DY = f32;
alias DX = f32;
alias W = f32; // gamma
alias DW = f32; // dgamma, one channel
alias DB = f32; // dbeta, one channel
const WIDTH = 1u;
const CENTERED = true;
// end prologue
// include lib/lanes_1.wgsl
// include lib/workgroup.wgsl

struct Params {
  rows: u32,
  channels: u32,
  bands: u32,
  band: u32, // rows in a band; the last may have fewer
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> dy: array<DY>;
@group(0) @binding(3) var<storage, read> gamma: array<W>;
@group(0) @binding(4) var<storage, read_write> dx: array<DX>;
@group(0) @binding(5) var<storage, read_write> mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(7) var<storage, read> row_mean: array<f32>;
@group(0) @binding(8) var<storage, read> row_rstd: array<f32>;
// Sums over each band, [bands, channels].
@group(0) @binding(9) var<storage, read_write> band_dgamma: array<V>;
@group(0) @binding(10) var<storage, read_write> band_dbeta: array<V>;
@group(0) @binding(11) var<storage, read> part_dgamma: array<f32>;
@group(0) @binding(12) var<storage, read> part_dbeta: array<f32>;
@group(0) @binding(13) var<storage, read_write> dgamma: array<DW>;
@group(0) @binding(14) var<storage, read_write> dbeta: array<DB>;

fn row_sum(base: u32, first: u32, step: u32) -> f32 {
  var total = V(0.0);
  for (var i = first; i < params.channels / WIDTH; i += step) {
    total += V(x[base + i]);
  }
  return lane_sum(total);
}

// Σ (x − mean)², Σ g, Σ g·(x − mean).
fn row_dots(base: u32, first: u32, step: u32, center: f32) -> vec3<f32> {
  var squares = V(0.0);
  var total = V(0.0);
  var dot = V(0.0);
  for (var i = first; i < params.channels / WIDTH; i += step) {
    let d = V(x[base + i]) - V(center);
    let g = V(dy[base + i]) * V(gamma[i]);
    squares += d * d;
    total += g;
    dot += g * d;
  }
  return vec3<f32>(lane_sum(squares), lane_sum(total), lane_sum(dot));
}

fn write_row(base: u32, first: u32, step: u32, center: f32, dots: vec3<f32>) {
  let n = f32(params.channels);
  let r = inverseSqrt(dots.x / n + params.eps);
  var a = 0.0;
  if (CENTERED) {
    a = dots.y / n;
  }
  let b = dots.z * r / n;
  for (var i = first; i < params.channels / WIDTH; i += step) {
    let xh = (V(x[base + i]) - V(center)) * V(r);
    dx[base + i] = DX(V(r) * (V(dy[base + i]) * V(gamma[i]) - V(a) - xh * V(b)));
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
  var center = 0.0;
  if (CENTERED) {
    center = row_sum(base, 0u, 1u) / n;
  }
  let dots = row_dots(base, 0u, 1u, center);
  write_row(base, 0u, 1u, center, dots);
  mean[row] = center;
  rstd[row] = inverseSqrt(dots.x / n + params.eps);
}

@compute @workgroup_size(64)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count);
  if (row >= params.rows) {
    return;
  }
  let n = f32(params.channels);
  let base = row * (params.channels / WIDTH);
  var center = 0.0;
  if (CENTERED) {
    center = workgroup_sum(row_sum(base, lane, 64u), lane) / n;
  }
  let own = row_dots(base, lane, 64u, center);
  let squares = workgroup_sum(own.x, lane);
  let total = workgroup_sum(own.y, lane);
  let dot = workgroup_sum(own.z, lane);
  write_row(base, lane, 64u, center, vec3<f32>(squares, total, dot));
  if (lane == 0u) {
    mean[row] = center;
    rstd[row] = inverseSqrt(squares / n + params.eps);
  }
}

@compute @workgroup_size(64)
fn columns(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let vectors = params.channels / WIDTH;
  if (i >= params.bands * vectors) {
    return;
  }
  let first = (i / vectors) * params.band;
  let last = min(first + params.band, params.rows);
  var at = first * vectors + i % vectors;
  var total = V(0.0);
  var dot = V(0.0);
  for (var row = first; row < last; row++) {
    let g = V(dy[at]);
    total += g;
    dot += g * (V(x[at]) - V(row_mean[row])) * V(row_rstd[row]);
    at += vectors;
  }
  band_dgamma[i] = dot;
  band_dbeta[i] = total;
}

@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let c = flat_workgroup(id, count) * 64u + lane;
  if (c >= params.channels) {
    return;
  }
  var dot = 0.0;
  var total = 0.0;
  for (var band = 0u; band < params.bands; band++) {
    dot += part_dgamma[band * params.channels + c];
    total += part_dbeta[band * params.channels + c];
  }
  dgamma[c] = DW(dot);
  dbeta[c] = DB(total);
}
