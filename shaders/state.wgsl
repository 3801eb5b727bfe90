// Updates in place of tensors that live from run to run.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32;
// end prologue

struct Params {
  count: u32, // of V, or of u32
  by: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> counter: array<u32>;
@group(0) @binding(2) var<storage, read_write> destination: array<V>;
@group(0) @binding(3) var<storage, read> source: array<X>;

@compute @workgroup_size(64)
fn increment(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i < params.count) {
    counter[i] += params.by;
  }
}

@compute @workgroup_size(64)
fn accumulate(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i < params.count) {
    destination[i] += params.scale * V(source[i]);
  }
}
