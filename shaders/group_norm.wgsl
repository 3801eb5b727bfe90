// GroupNorm (Wu & He 2018) with optional SiLU, channels last: x is [batch, pixels, channels].
// stats, merge, apply. In stats and apply one invocation owns V = 1 or 4 channels of a band of neighbouring pixels: a workgroup reads
// whole lines, nothing waits at a barrier, and even one image fills the device.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // x and y
alias W = f32; // gamma
alias B = f32; // beta
const WIDTH = 1u;
const SILU = false;
// end prologue
// include lib/lanes_1.wgsl
// include lib/pointwise.wgsl
// include lib/workgroup.wgsl

struct Params {
  batch: u32,
  pixels: u32,
  channels: u32,
  groups: u32,
  bands: u32,
  band: u32, // pixels in a band; the last band may have fewer
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> gamma: array<W>;
@group(0) @binding(3) var<storage, read> beta: array<B>;
// Mean and sum of squared deviations of each channel in each band, [batch, bands, channels].
@group(0) @binding(4) var<storage, read_write> channel_mean: array<V>;
@group(0) @binding(5) var<storage, read_write> channel_m2: array<V>;
// The same memory as merge reads it.
@group(0) @binding(6) var<storage, read> part_mean: array<f32>;
@group(0) @binding(7) var<storage, read> part_m2: array<f32>;
// [batch, groups]
@group(0) @binding(8) var<storage, read_write> mean: array<f32>;
@group(0) @binding(9) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(10) var<storage, read> group_mean: array<f32>;
@group(0) @binding(11) var<storage, read> group_rstd: array<f32>;
@group(0) @binding(12) var<storage, read_write> y: array<X>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

// Sums are about the band's first pixel: E[x²] − E[x]² would lose every digit where |mean| is much larger than the deviation.
@compute @workgroup_size(64)
fn stats(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let vectors = params.channels / WIDTH;
  if (i >= params.batch * params.bands * vectors) {
    return;
  }
  let image = i / (vectors * params.bands);
  let first = ((i / vectors) % params.bands) * params.band;
  let pixels = min(params.band, params.pixels - first);
  var at = (image * params.pixels + first) * vectors + i % vectors;
  let origin = V(x[at]);
  var total = V(0.0);
  var squares = V(0.0);
  for (var p = 0u; p < pixels; p++) {
    let d = V(x[at]) - origin;
    total += d;
    squares += d * d;
    at += vectors;
  }
  let offset = total / f32(pixels);
  channel_mean[i] = origin + offset;
  channel_m2[i] = max(squares - total * offset, V(0.0));
}

// Chan et al. 1983: means weighted by count, then M2 = Σ M2ᵢ + nᵢ (meanᵢ − mean)². One invocation per (image, group).
@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.batch * params.groups) {
    return;
  }
  let size = params.channels / params.groups;
  let base = (i / params.groups) * params.bands * params.channels + (i % params.groups) * size;
  let elements = f32(params.pixels * size);
  let origin = part_mean[base];
  var total = 0.0;
  for (var b = 0u; b < params.bands; b++) {
    let weight = f32(min(params.band, params.pixels - b * params.band));
    for (var c = 0u; c < size; c++) {
      total += weight * (part_mean[base + b * params.channels + c] - origin);
    }
  }
  let center = origin + total / elements;
  var m2 = 0.0;
  for (var b = 0u; b < params.bands; b++) {
    let weight = f32(min(params.band, params.pixels - b * params.band));
    for (var c = 0u; c < size; c++) {
      let at = base + b * params.channels + c;
      let d = part_mean[at] - center;
      m2 += part_m2[at] + weight * d * d;
    }
  }
  mean[i] = center;
  rstd[i] = inverseSqrt(m2 / elements + params.eps);
}

// merge with a workgroup per (image, group): few groups of many bands would leave a GPU idle.
@compute @workgroup_size(64)
fn merge_tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count);
  if (i >= params.batch * params.groups) {
    return;
  }
  let size = params.channels / params.groups;
  let base = (i / params.groups) * params.bands * params.channels + (i % params.groups) * size;
  let elements = f32(params.pixels * size);
  let origin = part_mean[base];
  var total = 0.0;
  for (var e = lane; e < params.bands * size; e += 64u) {
    let b = e / size;
    let weight = f32(min(params.band, params.pixels - b * params.band));
    total += weight * (part_mean[base + b * params.channels + e % size] - origin);
  }
  let center = origin + workgroup_sum(total, lane) / elements;
  var m2 = 0.0;
  for (var e = lane; e < params.bands * size; e += 64u) {
    let b = e / size;
    let weight = f32(min(params.band, params.pixels - b * params.band));
    let at = base + b * params.channels + e % size;
    let d = part_mean[at] - center;
    m2 += part_m2[at] + weight * d * d;
  }
  let deviation = workgroup_sum(m2, lane);
  if (lane == 0u) {
    mean[i] = center;
    rstd[i] = inverseSqrt(deviation / elements + params.eps);
  }
}

@compute @workgroup_size(64)
fn apply(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let vectors = params.channels / WIDTH;
  if (i >= params.batch * params.bands * vectors) {
    return;
  }
  let image = i / (vectors * params.bands);
  let first = ((i / vectors) % params.bands) * params.band;
  let pixels = min(params.band, params.pixels - first);
  let size = params.channels / params.groups;
  let c = (i % vectors) * WIDTH;
  // Groups of the four channels; a group may begin anywhere.
  let g0 = image * params.groups + c / size;
  let g1 = image * params.groups + (c + 1u % WIDTH) / size;
  let g2 = image * params.groups + (c + 2u % WIDTH) / size;
  let g3 = image * params.groups + (c + 3u % WIDTH) / size;
  let m = lanes(group_mean[g0], group_mean[g1], group_mean[g2], group_mean[g3]);
  let r = lanes(group_rstd[g0], group_rstd[g1], group_rstd[g2], group_rstd[g3]);
  let slope = V(gamma[i % vectors]) * r;
  let offset = V(beta[i % vectors]);
  var at = (image * params.pixels + first) * vectors + i % vectors;
  for (var p = 0u; p < pixels; p++) {
    // Not x·slope + (offset − mean·slope): that cancels where |mean| is large.
    var v = (V(x[at]) - m) * slope + offset;
    if (SILU) {
      v = silu(v);
    }
    y[at] = X(epilogue(v, at * WIDTH, c));
    at += vectors;
  }
}
