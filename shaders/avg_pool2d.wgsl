// Average pooling of NHWC and its gradient. Zeros of the padding count as elements (count_include_pad), so every window is divided by its size.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias Y = f32;
const WIDTH = 1u;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V that are written
  channels: u32, // in V
  x_height: i32,
  x_width: i32,
  y_height: i32,
  y_width: i32,
  kernel_h: i32,
  kernel_w: i32,
  stride_h: i32,
  stride_w: i32,
  padding_h: i32,
  padding_w: i32,
  scale: f32,
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
  let channel = i % params.channels;
  let pixel = i32(i / params.channels);
  let column = (pixel % params.y_width) * params.stride_w - params.padding_w;
  let line = pixel / params.y_width;
  let row = (line % params.y_height) * params.stride_h - params.padding_h;
  let n = line / params.y_height;
  var total = V(0.0);
  for (var r = max(row, 0); r < min(row + params.kernel_h, params.x_height); r++) {
    for (var c = max(column, 0); c < min(column + params.kernel_w, params.x_width); c++) {
      total += V(x[u32((n * params.x_height + r) * params.x_width + c) * params.channels + channel]);
    }
  }
  y[i] = Y(epilogue(total * params.scale, i * WIDTH, channel * WIDTH));
}

// Here x is dL/dy and y is dL/dx: each element adds the windows that hold it.
@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let channel = i % params.channels;
  let pixel = i32(i / params.channels);
  let column = pixel % params.x_width + params.padding_w;
  let line = pixel / params.x_width;
  let row = line % params.x_height + params.padding_h;
  let n = line / params.x_height;
  // The first window that reaches row r is ceil((r - kernel + 1) / stride).
  let row_begin = max(row - params.kernel_h + params.stride_h, 0) / params.stride_h;
  let column_begin = max(column - params.kernel_w + params.stride_w, 0) / params.stride_w;
  var total = V(0.0);
  for (var r = row_begin; r <= min(row / params.stride_h, params.y_height - 1); r++) {
    for (var c = column_begin; c <= min(column / params.stride_w, params.y_width - 1); c++) {
      total += V(x[u32((n * params.y_height + r) * params.y_width + c) * params.channels + channel]);
    }
  }
  y[i] = Y(epilogue(total * params.scale, i * WIDTH, channel * WIDTH));
}
