// Second pass of reductions that were split over workgroups (matmul, weight gradients): adds the parts in their order and applies the epilogue.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>;
alias Y = vec4<f32>;
const WIDTH = 4u;
// end prologue
// include lib/pointwise.wgsl

struct Params {
  count: u32, // of V in the result
  parts: u32,
  columns: u32, // of y
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<V>;
@group(0) @binding(2) var<storage, read_write> y: array<Y>;

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
  var total = V(0.0);
  for (var p = 0u; p < params.parts; p++) {
    total += parts[p * params.count + i];
  }
  y[i] = Y(epilogue(total, i * WIDTH, i * WIDTH % params.columns));
}
