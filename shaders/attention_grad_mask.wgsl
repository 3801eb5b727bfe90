// Gradient of attention's additive mask (a relative position bias): dS = P∘(dP − δ), summed over the dimensions along which the mask was
// broadcast, in a fixed order by one invocation for each of its elements. P as in attention_grad.wgsl.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
// end prologue
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl

// include lib/attention_dout.wgsl

@group(0) @binding(7) var<storage, read_write> dmask: array<MASK>;

@compute @workgroup_size(64)
fn grad_mask(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  // A stride of 0 marks a broadcast dimension: sum over all of it.
  let key_count = select(1u, params.m, params.mask_m != 0u);
  let row_count = select(1u, params.t, params.mask_t != 0u);
  let head_count = select(1u, params.heads, params.mask_h != 0u);
  let key = i % key_count;
  let row = i / key_count % row_count;
  let head = i / key_count / row_count % head_count;
  let batch = i / key_count / row_count / head_count;
  var sum = 0.0;
  for (var b = batch; b < params.batch; b += select(1u, params.batch, params.mask_b != 0u)) {
    for (var h = head; h < params.heads; h += head_count) {
      for (var t = row; t < params.t; t += row_count) {
        let from_q = query_at(b, h, t);
        let z = stats_at(b, h, t);
        for (var j = key; j < params.m; j += key_count) {
          let from_k = key_at(b, h, j);
          var s = 0.0;
          var p = 0.0;
          for (var d = 0u; d < params.head4; d++) {
            s += dot(read_q(from_q, d), read_k(from_k, d));
            p += dot(read_dout(from_q, d), read_v(from_k, d));
          }
          let score = masked(vec4<f32>(s * params.scale * LOG2E), b, h, vec4<u32>(t), vec4<u32>(j));
          sum += power(score - z.x).x * (p - z.y);
        }
      }
    }
  }
  dmask[i] = MASK(sum);
}
