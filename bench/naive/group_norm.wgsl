// One invocation a group of an image, then SiLU; x [N,pixels,C].
struct Params { n: u32, pixels: u32, c: u32, groups: u32, eps: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gamma: array<f32>;
@group(0) @binding(3) var<storage, read> beta: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(8)
fn forward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params.n * params.groups) { return; }
  let width = params.c / params.groups;
  let first = id.x / params.groups * params.pixels * params.c + id.x % params.groups * width;
  let count = f32(params.pixels * width);
  var sum = 0.0;
  for (var p = 0u; p < params.pixels; p++) {
    for (var c = 0u; c < width; c++) { sum += x[first + p * params.c + c]; }
  }
  let mean = sum / count;
  var squares = 0.0;
  for (var p = 0u; p < params.pixels; p++) {
    for (var c = 0u; c < width; c++) {
      let d = x[first + p * params.c + c] - mean;
      squares += d * d;
    }
  }
  let rstd = inverseSqrt(squares / count + params.eps);
  for (var p = 0u; p < params.pixels; p++) {
    for (var c = 0u; c < width; c++) {
      let at = first + p * params.c + c;
      let channel = id.x % params.groups * width + c;
      let u = (x[at] - mean) * rstd * gamma[channel] + beta[channel];
      y[at] = u / (1.0 + exp(-u));
    }
  }
}
