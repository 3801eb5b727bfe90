// Classifier-free guidance over a batch [unconditional; conditional]: u + scale * (c - u). Channels beyond the guided ones (a predicted
// variance) are the conditional half's.
// include lib/index.wgsl
// prologue
alias X = f32;
// end prologue

struct Params {
  count: u32, // elements of one half
  size: u32, // elements of one image
  guided: u32, // how many of them, from the first, are guided
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>; // [2, count]
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let u = f32(x[i]);
  let c = f32(x[params.count + i]);
  y[i] = select(c, u + scale[0] * (c - u), i % params.size < params.guided);
}
