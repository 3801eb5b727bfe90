// One invocation an element, one product at a time.
struct Params { m: u32, n: u32, k: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params.m * params.n) { return; }
  let row = id.x / params.n;
  let column = id.x % params.n;
  var sum = 0.0;
  for (var i = 0u; i < params.k; i++) { sum += a[row * params.k + i] * b[i * params.n + column]; }
  y[id.x] = sum;
}
