// What an adapter can do at most: fused multiply-adds that wait for nothing, and a plain copy.

// prologue
alias S = f32;
// end prologue
alias V = vec4<S>;

struct Params {
  // Of `fma_chains`: rounds of 8 vec4 fmas. Of `copy`: vec4s in all.
  count: u32,
  // Factor and summand of the chains, unknown to the compiler; they converge, so that nothing overflows.
  a: f32,
  b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;

// Eight chains cover the latency of the multiply-add units; each round is 8 * 4 fmas, 64 flops.
@compute @workgroup_size(64)
fn fma_chains(@builtin(global_invocation_id) id: vec3u) {
  let a = V(S(params.a));
  let b = V(S(params.b));
  let start = V(S(id.x & 63u));
  var x0 = start;
  var x1 = start + V(1);
  var x2 = start + V(2);
  var x3 = start + V(3);
  var x4 = start + V(4);
  var x5 = start + V(5);
  var x6 = start + V(6);
  var x7 = start + V(7);
  for (var i = 0u; i < params.count; i++) {
    x0 = fma(x0, a, b);
    x1 = fma(x1, a, b);
    x2 = fma(x2, a, b);
    x3 = fma(x3, a, b);
    x4 = fma(x4, a, b);
    x5 = fma(x5, a, b);
    x6 = fma(x6, a, b);
    x7 = fma(x7, a, b);
  }
  // Stored by every invocation, so that no chain is dead code.
  result[id.x] = vec4<f32>(x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7);
}

@compute @workgroup_size(256)
fn copy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  for (var i = id.x; i < params.count; i += groups.x * 256u) {
    result[i] = source[i];
  }
}
