// Images [N,C,H,W] as bytes: 4 to a pixel (R, G, B, 255), rows padded to `pitch` pixels as copies to textures want it. An invocation a pixel.
// include lib/index.wgsl
// prologue
alias X = f32;
// end prologue

struct Params {
  count: u32, // pixels of y
  pitch: u32,
  height: u32,
  width: u32,
  channels: u32, // 1 (grey) or 3
  factor: f32,
  offset: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [N, H, pitch]

fn byte_at(i: u32) -> u32 {
  return u32(clamp(f32(x[i]) * params.factor + params.offset, 0.0, 1.0) * 255.0 + 0.5);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let column = i % params.pitch;
  let row = (i / params.pitch) % params.height;
  if (column >= params.width) {
    y[i] = 0u;
    return;
  }
  let plane = params.height * params.width;
  let first = (i / params.pitch / params.height) * params.channels * plane + row * params.width + column;
  let red = byte_at(first);
  var green = red;
  var blue = red;
  if (params.channels == 3u) {
    green = byte_at(first + plane);
    blue = byte_at(first + 2u * plane);
  }
  y[i] = red | (green << 8u) | (blue << 16u) | 0xff000000u;
}
