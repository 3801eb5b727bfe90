// Packed weights as plain f32: an invocation takes four neighbours. `matrix` is for levels in blocks along the columns of a matrix.
// include lib/index.wgsl
// include lib/weights.wgsl

struct Params {
  count: u32,
  n: u32, // columns
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn store(i: u32, v: f32) {
  if (i < params.count) {
    y[i] = v;
  }
}

fn store_four(i: u32, v: vec4<f32>) {
  store(i, v.x);
  store(i + 1u, v.y);
  store(i + 2u, v.z);
  store(i + 3u, v.w);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (flat_workgroup(id, count) * 64u + lane) * 4u;
  if (i < params.count) {
    store_four(i, table(i));
  }
}

@compute @workgroup_size(64)
fn matrix(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (flat_workgroup(id, count) * 64u + lane) * 4u;
  if (i < params.count) {
    store_four(i, weights(0u, i / params.n, i % params.n));
  }
}
