// The source pixels that each result pixel of a convolution reads, side by side (im2col): y[n,p,q, (r,s,c)] of x [N,H,W,C], zero outside the image.
// For software adapters and few channels: a convolution then is one product whose loop over k never starts anew at a tap.
// include lib/index.wgsl
// prologue
alias X = f32;
// end prologue

struct Params {
  pixels: u32, // of the result, of all images
  channels: u32,
  height: u32, // of x
  width: u32,
  y_height: u32,
  y_width: u32,
  taps_y: u32,
  taps_x: u32,
  stride: u32,
  pad_top: u32,
  pad_left: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<X>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let pixel = flat_workgroup(id, count) * 64u + lane;
  if (pixel >= params.pixels) {
    return;
  }
  let line = pixel / params.y_width;
  let n = line / params.y_height;
  // Positions above and left of the image are large numbers. Taps of a row read neighbours: one stretch of its elements.
  let top = line % params.y_height * params.stride - params.pad_top;
  let left = (pixel % params.y_width * params.stride - params.pad_left) * params.channels;
  let stretch = params.taps_x * params.channels;
  let length = params.width * params.channels;
  var i = pixel * params.taps_y * stretch;
  for (var r = 0u; r < params.taps_y; r++) {
    let row = top + r;
    let first = (n * params.height + row) * length + left;
    for (var j = 0u; j < stretch; j++) {
      y[i] = select(X(), x[first + j], row < params.height && left + j < length);
      i++;
    }
  }
}
