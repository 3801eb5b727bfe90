// What an adapter can do at most: fused multiply-adds that wait for nothing, and a plain copy.

// prologue
alias S = f32;
// end prologue
alias V = vec4<S>;

struct Params {
  // Of `fma_chains`: turns of 4 rounds of 8 vec4 multiply-adds. Of `copy`: vec4s in all.
  count: u32,
  // Factor and summand of the chains, unknown to the compiler; they converge, so that nothing overflows.
  a: f32,
  b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;

// Eight chains cover the latency of the multiply-add units.
struct Chains {
  x0: V,
  x1: V,
  x2: V,
  x3: V,
  x4: V,
  x5: V,
  x6: V,
  x7: V,
}

// 8 * 4 multiply-adds, 64 flops.
fn round(c: Chains, a: V, b: V) -> Chains {
  return Chains(fma(c.x0, a, b), fma(c.x1, a, b), fma(c.x2, a, b), fma(c.x3, a, b), fma(c.x4, a, b), fma(c.x5, a, b), fma(c.x6, a, b), fma(c.x7, a, b));
}

@compute @workgroup_size(64)
fn fma_chains(@builtin(global_invocation_id) id: vec3u) {
  let a = V(S(params.a));
  let b = V(S(params.b));
  let start = V(S(id.x & 63u));
  var c = Chains(start, start + V(1), start + V(2), start + V(3), start + V(4), start + V(5), start + V(6), start + V(7));
  for (var i = 0u; i < params.count; i++) {
    // Four rounds a turn: counting and jumping would take a third of the time on a CPU.
    c = round(c, a, b);
    c = round(c, a, b);
    c = round(c, a, b);
    c = round(c, a, b);
  }
  // Stored by every invocation, so that no chain is dead code.
  result[id.x] = vec4<f32>(c.x0 + c.x1 + c.x2 + c.x3 + c.x4 + c.x5 + c.x6 + c.x7);
}

@compute @workgroup_size(256)
fn copy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  for (var i = id.x; i < params.count; i += groups.x * 256u) {
    result[i] = source[i];
  }
}
