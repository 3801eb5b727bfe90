// Upsample by zero insertion, pad, filter by a small FIR kernel, downsample: depthwise on NHWC, only the non-zero terms of each sum.
// y[o] = Σ_k K[k]·u[o·down + k − pad], where u holds x[j/up] at multiples of up and zeros elsewhere; K is the kernel, or the kernel turned by 180°
// (a true convolution) where FLIP.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias Y = f32;
const WIDTH = 1u;
const FLIP = true;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V in y
  channels: u32, // in V
  x_height: i32,
  x_width: i32,
  y_height: i32,
  y_width: i32,
  kernel_h: i32,
  kernel_w: i32,
  up: i32,
  down: i32,
  pad_h: i32,
  pad_w: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> kernel: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

// The smallest k ≥ 0 for which at + k is a multiple of up.
fn first_tap(at: i32) -> i32 {
  let rest = at % params.up; // has the sign of `at`
  return select(select(0, -rest, rest < 0), params.up - rest, rest > 0);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let channel = i % params.channels;
  let pixel = i32(i / params.channels);
  let column = (pixel % params.y_width) * params.down - params.pad_w;
  let line = pixel / params.y_width;
  let row = (line % params.y_height) * params.down - params.pad_h;
  let n = line / params.y_height;
  var total = V(0.0);
  for (var r = first_tap(row); r < params.kernel_h; r += params.up) {
    let p = (row + r) / params.up;
    if (p < 0 || p >= params.x_height) {
      continue;
    }
    for (var s = first_tap(column); s < params.kernel_w; s += params.up) {
      let q = (column + s) / params.up;
      if (q < 0 || q >= params.x_width) {
        continue;
      }
      var tap = r * params.kernel_w + s;
      if (FLIP) {
        tap = params.kernel_h * params.kernel_w - 1 - tap;
      }
      total += kernel[tap] * V(x[u32((n * params.x_height + p) * params.x_width + q) * params.channels + channel]);
    }
  }
  y[i] = Y(epilogue(total, i * WIDTH, channel * WIDTH));
}
