// Whether x [count] holds an infinity or a NaN: then `mark` goes into `found`, where the largest mark stays.
// include lib/index.wgsl
// prologue
alias X = f32;
// end prologue

struct Params {
  count: u32,
  mark: u32,
  stride: u32, // invocations in all
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> found: atomic<u32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = flat_workgroup(id, count) * 64u + lane;
  if (first >= params.stride) {
    return;
  }
  for (var i = first; i < params.count; i += params.stride) {
    // Implementations may assume that nothing is infinite or NaN, so only the bits can tell.
    if ((bitcast<u32>(f32(x[i])) & 0x7f800000u) == 0x7f800000u) {
      atomicMax(&found, params.mark);
    }
  }
}
