// Gradients of GroupNorm (+ SiLU). With x̂ = (x − mean)·rstd, u = γ·x̂ + β and du = dy·silu'(u) (or dy):
//   dβ = Σ du, dγ = Σ du·x̂ over batch and pixels;  dx = rstd·(γ·du − a − x̂·b),
//   a and b the means of γ·du and γ·du·x̂ over the elements of the group.
// sums, merge, apply; bands and invocations as in group_norm.wgsl. u is computed again instead of being kept.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias DY = f32;
alias DX = f32;
alias W = f32; // gamma
alias WS = f32; // gamma, one channel
alias B = f32; // beta
alias DW = f32; // dgamma, one channel
alias DB = f32; // dbeta, one channel
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
  band: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> dy: array<DY>;
@group(0) @binding(3) var<storage, read> gamma: array<W>;
@group(0) @binding(4) var<storage, read> beta: array<B>;
@group(0) @binding(5) var<storage, read> mean: array<f32>;
@group(0) @binding(6) var<storage, read> rstd: array<f32>;
// Σ du and Σ du·x̂ of each channel in each band, [batch, bands, channels].
@group(0) @binding(7) var<storage, read_write> channel_du: array<V>;
@group(0) @binding(8) var<storage, read_write> channel_dux: array<V>;
@group(0) @binding(9) var<storage, read> part_du: array<f32>;
@group(0) @binding(10) var<storage, read> part_dux: array<f32>;
@group(0) @binding(11) var<storage, read> scalar_gamma: array<WS>;
// (a, b) of each (image, group).
@group(0) @binding(12) var<storage, read_write> group_means: array<vec2<f32>>;
@group(0) @binding(13) var<storage, read> means: array<vec2<f32>>;
@group(0) @binding(14) var<storage, read_write> dgamma: array<DW>;
@group(0) @binding(15) var<storage, read_write> dbeta: array<DB>;
@group(0) @binding(16) var<storage, read_write> dx: array<DX>;

@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
  let g0 = image * params.groups + c / size;
  let g1 = image * params.groups + (c + 1u % WIDTH) / size;
  let g2 = image * params.groups + (c + 2u % WIDTH) / size;
  let g3 = image * params.groups + (c + 3u % WIDTH) / size;
  let m = lanes(mean[g0], mean[g1], mean[g2], mean[g3]);
  let r = lanes(rstd[g0], rstd[g1], rstd[g2], rstd[g3]);
  let slope = V(gamma[i % vectors]);
  let offset = V(beta[i % vectors]);
  var at = (image * params.pixels + first) * vectors + i % vectors;
  var total = V(0.0);
  var dot = V(0.0);
  for (var p = 0u; p < pixels; p++) {
    let xh = (V(x[at]) - m) * r;
    var du = V(dy[at]);
    if (SILU) {
      du *= silu_grad(xh * slope + offset);
    }
    total += du;
    dot += du * xh;
    at += vectors;
  }
  channel_du[i] = total;
  channel_dux[i] = dot;
}

// The first batch·groups invocations make the group means, the next `channels` dγ and dβ: both only read the sums.
@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let owners = params.batch * params.groups;
  if (i < owners) {
    let size = params.channels / params.groups;
    let c = (i % params.groups) * size;
    let base = (i / params.groups) * params.bands * params.channels;
    var a = 0.0;
    var b = 0.0;
    for (var k = c; k < c + size; k++) {
      var du = 0.0;
      var dux = 0.0;
      for (var band = 0u; band < params.bands; band++) {
        du += part_du[base + band * params.channels + k];
        dux += part_dux[base + band * params.channels + k];
      }
      let slope = f32(scalar_gamma[k]);
      a += slope * du;
      b += slope * dux;
    }
    group_means[i] = vec2<f32>(a, b) / f32(params.pixels * size);
  } else if (i < owners + params.channels) {
    let c = i - owners;
    var du = 0.0;
    var dux = 0.0;
    for (var row = 0u; row < params.batch * params.bands; row++) {
      du += part_du[row * params.channels + c];
      dux += part_dux[row * params.channels + c];
    }
    dbeta[c] = DB(du);
    dgamma[c] = DW(dux);
  }
}

// merge with a workgroup per (image, group), then one per channel: few sums of many bands would leave a GPU idle.
@compute @workgroup_size(64)
fn merge_tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count);
  let owners = params.batch * params.groups;
  let size = params.channels / params.groups;
  if (i >= owners + params.channels) {
    return;
  }
  var du = 0.0;
  var dux = 0.0;
  if (i < owners) {
    let c = (i % params.groups) * size;
    let base = (i / params.groups) * params.bands * params.channels + c;
    for (var e = lane; e < params.bands * size; e += 64u) {
      let at = base + (e / size) * params.channels + e % size;
      let slope = f32(scalar_gamma[c + e % size]);
      du += slope * part_du[at];
      dux += slope * part_dux[at];
    }
  } else {
    for (var row = lane; row < params.batch * params.bands; row += 64u) {
      du += part_du[row * params.channels + i - owners];
      dux += part_dux[row * params.channels + i - owners];
    }
  }
  du = workgroup_sum(du, lane);
  dux = workgroup_sum(dux, lane);
  if (lane == 0u) {
    if (i < owners) {
      group_means[i] = vec2<f32>(du, dux) / f32(params.pixels * size);
    } else {
      dbeta[i - owners] = DB(du);
      dgamma[i - owners] = DW(dux);
    }
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
  let g0 = image * params.groups + c / size;
  let g1 = image * params.groups + (c + 1u % WIDTH) / size;
  let g2 = image * params.groups + (c + 2u % WIDTH) / size;
  let g3 = image * params.groups + (c + 3u % WIDTH) / size;
  let m = lanes(mean[g0], mean[g1], mean[g2], mean[g3]);
  let r = lanes(rstd[g0], rstd[g1], rstd[g2], rstd[g3]);
  let a = lanes(means[g0].x, means[g1].x, means[g2].x, means[g3].x);
  let b = lanes(means[g0].y, means[g1].y, means[g2].y, means[g3].y);
  let slope = V(gamma[i % vectors]);
  let offset = V(beta[i % vectors]);
  var at = (image * params.pixels + first) * vectors + i % vectors;
  for (var p = 0u; p < pixels; p++) {
    let xh = (V(x[at]) - m) * r;
    var du = V(dy[at]);
    if (SILU) {
      du *= silu_grad(xh * slope + offset);
    }
    dx[at] = DX(r * (slope * du - a - xh * b));
    at += vectors;
  }
}
