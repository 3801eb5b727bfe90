// Sinusoidal embedding of one number per row: [sines, cosines] or [cosines, sines] of t·frequency, a zero behind where the width is odd.
// Arguments go to 1000 rad, so sine, cosine and logarithm are our own; they are rounded to f32 where PyTorch rounds them.
// include lib/index.wgsl
// include lib/log.wgsl
// prologue
alias V = f32;
alias T = f32;
const COSINE_FIRST = false;
const LOG = false;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  rows: u32,
  width: u32,
  argument_scale: f32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> t: array<T>;
@group(0) @binding(2) var<storage, read> frequency: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.rows * params.width) {
    return;
  }
  let half_width = params.width / 2u;
  let column = i % params.width;
  if (column >= 2u * half_width) {
    y[i] = 0.0;
    return;
  }
  var number = f32(t[i / params.width]);
  if (LOG) {
    number = log_exact(number);
  }
  // The clamps keep compilers from contracting the products into the range reduction, which would skip their rounding.
  let product = clamp(number * frequency[column % half_width], -1.0e30, 1.0e30);
  let argument = clamp(product * params.argument_scale, -1.0e30, 1.0e30);
  if ((column < half_width) == COSINE_FIRST) {
    y[i] = params.scale * cos_exact(argument);
  } else {
    y[i] = params.scale * sin_exact(argument);
  }
}
