// Separable resampling of NHWC by tables: along each axis, output o is Σ_k weight[o][k]·x[first[o] + k]. A row of a table is first[o] (a whole number),
// then its weights; rows with fewer taps end in zeros, and first + taps stays within the image.
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
  row_taps: u32,
  column_taps: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> rows: array<f32>; // [y_height, 1 + row_taps]
@group(0) @binding(3) var<storage, read> columns: array<f32>; // [y_width, 1 + column_taps]
@group(0) @binding(4) var<storage, read_write> y: array<Y>;

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
  let pixel = i / params.channels;
  let column = (pixel % params.y_width) * (params.column_taps + 1u);
  let line = pixel / params.y_width;
  let row = (line % params.y_height) * (params.row_taps + 1u);
  let top = (line / params.y_height) * params.x_height + u32(rows[row]);
  let left = u32(columns[column]);
  var total = V(0.0);
  for (var r = 0u; r < params.row_taps; r++) {
    let at = ((top + r) * params.x_width + left) * params.channels + channel;
    var across = V(0.0);
    for (var s = 0u; s < params.column_taps; s++) {
      across += columns[column + 1u + s] * V(x[at + s * params.channels]);
    }
    total += rows[row + 1u + r] * across;
  }
  y[i] = Y(epilogue(total, i * WIDTH, channel * WIDTH));
}
