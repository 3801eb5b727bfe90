// One invocation a query of a head: the largest score, then the sum, then the output; q, k, v [T, heads·HEAD].
struct Params { tokens: u32, heads: u32, scale: f32 }
const HEAD = 64u;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn score(at_q: u32, at_k: u32) -> f32 {
  var sum = 0.0;
  for (var d = 0u; d < HEAD; d++) { sum += q[at_q + d] * k[at_k + d]; }
  return sum * params.scale;
}

@compute @workgroup_size(16)
fn forward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params.tokens * params.heads) { return; }
  let row = params.heads * HEAD;
  let head = id.x % params.heads * HEAD;
  let at = id.x / params.heads * row + head;
  var largest = -3e38;
  for (var j = 0u; j < params.tokens; j++) { largest = max(largest, score(at, j * row + head)); }
  var sum = 0.0;
  var out: array<f32, HEAD>;
  for (var j = 0u; j < params.tokens; j++) {
    let p = exp(score(at, j * row + head) - largest);
    sum += p;
    for (var d = 0u; d < HEAD; d++) { out[d] += p * v[j * row + head + d]; }
  }
  for (var d = 0u; d < HEAD; d++) { y[at + d] = out[d] / sum; }
}
