// Images of a tensor in GPU memory, side by side: a triangle over the canvas, a cell of it an image. What is drawn is a·A + b·B.
struct Params {
  count: u32, // images
  channels: u32, // 1 (grey or a colour scale), 3 (red, green, blue), 4 (latents of Stable Diffusion)
  height: u32,
  width: u32,
  columns: u32,
  zoom: u32, // canvas pixels by image pixel
  gap: u32,
  scale: u32, // 0: grey, 1: below and above zero
  strides: vec4<u32>, // of image, channel, row, column, in elements
  offsets: vec2<u32>, // of A and B, in elements
  factors: vec2<f32>, // a and b
  range: vec2<f32>, // values drawn black and white
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> A: array<f32>;
@group(0) @binding(2) var<storage, read> B: array<f32>;

@vertex
fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
  return vec4(f32(i32(i & 1u) * 4 - 1), f32(i32(i >> 1u) * 4 - 1), 0.0, 1.0);
}

fn value(image: u32, channel: u32, y: u32, x: u32) -> f32 {
  let at = dot(params.strides, vec4(image, channel, y, x));
  return params.factors.x * A[params.offsets.x + at] + params.factors.y * B[params.offsets.y + at];
}

@fragment
fn pixel(@builtin(position) position: vec4<f32>) -> @location(0) vec4<f32> {
  let p = vec2<u32>(position.xy);
  let pitch = vec2(params.width, params.height) * params.zoom + vec2(params.gap);
  let cell = p / pitch;
  let at = p % pitch;
  let image = cell.y * params.columns + cell.x;
  if (cell.x >= params.columns || image >= params.count || any(at >= pitch - vec2(params.gap))) {
    return vec4(0.0);
  }
  let q = at / params.zoom;
  let low = params.range.x;
  let span = params.range.y - low;
  if (params.channels == 4u) {
    // Colours that latents of the first Stable Diffusion models stand for, nearly: a linear fit, known to everyone who previews them.
    let l = vec4(value(image, 0u, q.y, q.x), value(image, 1u, q.y, q.x), value(image, 2u, q.y, q.x), value(image, 3u, q.y, q.x));
    let rgb = vec3(dot(l, vec4(0.298, 0.187, -0.158, -0.184)), dot(l, vec4(0.207, 0.286, 0.189, -0.271)), dot(l, vec4(0.208, 0.173, 0.264, -0.473)));
    return vec4(clamp((rgb - low) / span, vec3(0.0), vec3(1.0)), 1.0);
  }
  let first = (value(image, 0u, q.y, q.x) - low) / span;
  if (params.channels == 3u) {
    let rgb = vec3(first, (value(image, 1u, q.y, q.x) - low) / span, (value(image, 2u, q.y, q.x) - low) / span);
    return vec4(clamp(rgb, vec3(0.0), vec3(1.0)), 1.0);
  }
  let v = clamp(first, 0.0, 1.0);
  if (params.scale == 0u) {
    return vec4(v, v, v, 1.0);
  }
  let far = abs(2.0 * v - 1.0);
  let end = select(vec3(0.15, 0.35, 0.75), vec3(0.78, 0.30, 0.05), v > 0.5);
  return vec4(mix(vec3(0.97, 0.965, 0.955), end, far), 1.0);
}
