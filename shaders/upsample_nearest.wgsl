// Nearest-neighbour resampling of NHWC to any size: y[i] = x[floor(i·H/H2)], in integers, so no rounding can move an edge.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias Y = f32;
const WIDTH = 1u;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V in y
  channels: u32, // in V
  x_height: u32,
  x_width: u32,
  y_height: u32,
  y_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<Y>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let pixel = i / params.channels;
  let column = pixel % params.y_width;
  let line = pixel / params.y_width;
  let row = line % params.y_height;
  let n = line / params.y_height;
  let source = (n * params.x_height + row * params.x_height / params.y_height) * params.x_width + column * params.x_width / params.y_width;
  y[i] = Y(epilogue(V(x[source * params.channels + i % params.channels]), i * WIDTH, i % params.channels * WIDTH));
}
