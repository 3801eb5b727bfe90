// Element-wise chains: one invocation computes V = 1 or 4 neighbouring elements.
// The chain itself is the epilogue: it loads its operands by output index, so broadcasting and fusion live in one place
// (src/engine/pointwise_codegen.ts).
// include lib/index.wgsl
// prologue
alias V = f32;
alias Y = f32;
const WIDTH = 1u;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<Y>;

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
  y[i] = Y(epilogue(V(0.0), i * WIDTH, 0u));
}
