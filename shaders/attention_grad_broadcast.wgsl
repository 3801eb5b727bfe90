// Gradients of attention (see attention_grad.wgsl) for software adapters with subgroups of 4 lanes (SwiftShader): a subgroup, which is the
// whole workgroup, owns 8 query rows (grad_q) or 8 keys (grad_kv) of one head and takes the others 128 at a time. As in
// attention_broadcast.wgsl, the lane that computes a score is the one that passes its derivative on: part 0 of what is kept and summed is dS and dQ or
// dK, part 1 P and dV.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // storage of q, k, v and all of their shape
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const HEAD = 64u; // D rounded up to 16
// end prologue
// include lib/lanes_1.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_dout.wgsl
// include lib/attention_grad_store.wgsl
// include lib/broadcast_tile.wgsl
// include lib/attention_broadcast.wgsl

fn dout_rows(at: vec4<u32>, inside: bool) -> vec4<f32> {
  return select(vec4<f32>(), vec4<f32>(f32(dout[at.x]), f32(dout[at.y]), f32(dout[at.z]), f32(dout[at.w])), inside);
}

fn dout_block(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(dout[at.x]), f32(dout[at.y]), f32(dout[at.z]), f32(dout[at.w]),
    f32(dout[at.x + 1u]), f32(dout[at.y + 1u]), f32(dout[at.z + 1u]), f32(dout[at.w + 1u]),
    f32(dout[at.x + 2u]), f32(dout[at.y + 2u]), f32(dout[at.z + 2u]), f32(dout[at.w + 2u]),
    f32(dout[at.x + 3u]), f32(dout[at.y + 3u]), f32(dout[at.z + 3u]), f32(dout[at.w + 3u]),
  );
}

fn dout_lines(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(dout[at.x]), f32(dout[at.x + 4u]), f32(dout[at.x + 8u]), f32(dout[at.x + 12u]),
    f32(dout[at.y]), f32(dout[at.y + 4u]), f32(dout[at.y + 8u]), f32(dout[at.y + 12u]),
    f32(dout[at.z]), f32(dout[at.z + 4u]), f32(dout[at.z + 8u]), f32(dout[at.z + 12u]),
    f32(dout[at.w]), f32(dout[at.w + 4u]), f32(dout[at.w + 8u]), f32(dout[at.w + 12u]),
  );
}

@compute @workgroup_size(4)
fn grad_q(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * 8u;
  let columns = lane + 4u * ALONG;
  let stride = params.heads * params.head;
  let upper_at = query_rows(b, h, first) + lane;
  let lower_at = query_rows(b, h, first + 4u) + lane;
  let keys_at = key_at(b, h, 0u);
  let end = key_end(first + 8u);
  for (var begin = 0u; begin < end; begin += KEYS) {
    let keys = min(KEYS, end - begin);
    for (var g = 0u; g < keys; g += 16u) {
      let at = keys_at + min(begin + g + columns, vec4<u32>(params.m - 1u)) * stride;
      set_tile(array<vec4<f32>, 8>());
      for (var d = 0u; d < params.head; d += 4u) {
        let inside = WIDE || d + lane < params.head;
        multiply(q_rows(upper_at + d, inside), q_rows(lower_at + d, inside), cut_block(k_block(at + d), d));
      }
      var scores = tile();
      set_tile(array<vec4<f32>, 8>());
      for (var d = 0u; d < params.head; d += 4u) {
        let inside = WIDE || d + lane < params.head;
        multiply(dout_rows(upper_at + d, inside), dout_rows(lower_at + d, inside), cut_block(v_block(at + d), d));
      }
      var dp = tile();
      for (var r = 0u; r < 8u; r++) {
        let z = stats_at(b, h, first + r);
        let s = masked(scores[r] * (params.scale * LOG2E), b, h, vec4<u32>(first + r), begin + g + columns);
        // A key that is not there must not count, whatever the row's log-sum.
        let ds = select(vec4<f32>(), power(s - z.x) * (dp[r] - z.y) * params.scale, s > vec4<f32>(ABSENT));
        keep(0u, r, g, ds);
      }
    }
    for (var n = 0u; n < params.head; n += 16u) {
      load_sums(0u, n);
      for (var key = 0u; key < keys; key += 4u) {
        let at = keys_at + n + lane + min(vec4<u32>(begin + key) + ALONG, vec4<u32>(params.m - 1u)) * stride;
        multiply(kept_rows(0u, 0u, key), kept_rows(0u, 4u, key), k_lines(at));
      }
      save_sums(0u, n);
    }
  }
  for (var r = 0u; r < 8u; r++) {
    if (first + r >= params.t) {
      break;
    }
    let at = query_at(b, h, first + r);
    for (var d = lane; d < params.head; d += 4u) {
      dq[at + d] = X(sum_at(0u, r, d));
    }
  }
}

@compute @workgroup_size(4)
fn grad_kv(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * 8u;
  let columns = lane + 4u * ALONG;
  let stride = params.heads * params.head;
  let upper_at = key_rows(b, h, first) + lane;
  let lower_at = key_rows(b, h, first + 4u) + lane;
  let queries_at = query_at(b, h, 0u);
  // Earlier rows see none of these keys.
  var start = 0u;
  if (CAUSAL) {
    start = first;
  }
  for (var begin = start; begin < params.t; begin += KEYS) {
    let queries = min(KEYS, params.t - begin);
    for (var g = 0u; g < queries; g += 16u) {
      let t = begin + g + columns;
      let at = queries_at + min(t, vec4<u32>(params.t - 1u)) * stride;
      set_tile(array<vec4<f32>, 8>());
      for (var d = 0u; d < params.head; d += 4u) {
        let inside = WIDE || d + lane < params.head;
        multiply(k_rows(upper_at + d, inside), k_rows(lower_at + d, inside), cut_block(q_block(at + d), d));
      }
      var scores = tile();
      set_tile(array<vec4<f32>, 8>());
      for (var d = 0u; d < params.head; d += 4u) {
        let inside = WIDE || d + lane < params.head;
        multiply(v_rows(upper_at + d, inside), v_rows(lower_at + d, inside), cut_block(dout_block(at + d), d));
      }
      var dp = tile();
      let z0 = stats_at(b, h, t.x);
      let z1 = stats_at(b, h, t.y);
      let z2 = stats_at(b, h, t.z);
      let z3 = stats_at(b, h, t.w);
      let log_sum = vec4<f32>(z0.x, z1.x, z2.x, z3.x);
      let delta = vec4<f32>(z0.y, z1.y, z2.y, z3.y);
      for (var r = 0u; r < 8u; r++) {
        let s = masked(scores[r] * (params.scale * LOG2E), b, h, t, vec4<u32>(first + r));
        let p = select(vec4<f32>(), power(s - log_sum), (s > vec4<f32>(ABSENT)) & (t < vec4<u32>(params.t)));
        let ds = p * (dp[r] - delta) * params.scale;
        keep(0u, r, g, ds);
        keep(1u, r, g, p);
      }
    }
    for (var n = 0u; n < params.head; n += 16u) {
      let to = queries_at + n + lane;
      load_sums(0u, n);
      for (var t = 0u; t < queries; t += 4u) {
        multiply(kept_rows(0u, 0u, t), kept_rows(0u, 4u, t), q_lines(to + min(vec4<u32>(begin + t) + ALONG, vec4<u32>(params.t - 1u)) * stride));
      }
      save_sums(0u, n);
      load_sums(1u, n);
      for (var t = 0u; t < queries; t += 4u) {
        multiply(kept_rows(1u, 0u, t), kept_rows(1u, 4u, t), dout_lines(to + min(vec4<u32>(begin + t) + ALONG, vec4<u32>(params.t - 1u)) * stride));
      }
      save_sums(1u, n);
    }
  }
  for (var r = 0u; r < 8u; r++) {
    if (first + r >= params.m) {
      break;
    }
    let at = key_at(b, h, first + r);
    for (var d = lane; d < params.head; d += 4u) {
      dk[at + d] = X(sum_at(0u, r, d));
      dv[at + d] = X(sum_at(1u, r, d));
    }
  }
}
