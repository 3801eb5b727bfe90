// Sums over the middle of [outer, reduce, inner].
// One invocation adds every `chunks`-th element of the middle axis for one (outer, inner): neighbours in a workgroup read neighbouring
// addresses both for inner > 1 and for inner = 1. Several passes shrink `reduce` to `chunks` each time. No atomics: the order of
// additions is fixed, so results repeat bit for bit.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
alias Y = f32;
const SQUARE = false;
// end prologue

struct Params {
  outer: u32,
  reduce: u32,
  inner: u32, // in V
  chunks: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<Y>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // i counts y's elements [outer, chunks, inner].
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.outer * params.chunks * params.inner) {
    return;
  }
  let inner = i % params.inner;
  let chunk = (i / params.inner) % params.chunks;
  let outer = i / (params.inner * params.chunks);
  let base = outer * params.reduce * params.inner + inner;
  var total = V(0.0);
  for (var r = chunk; r < params.reduce; r += params.chunks) {
    let v = V(x[base + r * params.inner]);
    total += select(v, v * v, SQUARE);
  }
  y[i] = Y(total * params.scale);
}
