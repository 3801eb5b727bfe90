// Attention by online softmax (Dao et al. 2022, Dao 2023) for software adapters with subgroups of 4 lanes (SwiftShader): a subgroup, which is
// the whole workgroup, computes 8 query rows of one head against 128 keys at a time. Scores and result are tiles of lib/broadcast_tile.wgsl;
// the lane that computes a score also passes its probability on, so that nothing but broadcasts is shared.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // storage of q, k, v and o
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const HEAD = 64u; // D rounded up to 16
// end prologue
// include lib/lanes_1.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/broadcast_tile.wgsl
// include lib/attention_broadcast.wgsl

@group(0) @binding(5) var<storage, read_write> o: array<X>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>; // [B,heads,T], natural logarithm

@compute @workgroup_size(4)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * 8u;
  let columns = lane + 4u * ALONG;
  let stride = params.heads * params.head;
  let upper_q = query_rows(b, h, first) + lane;
  let lower_q = query_rows(b, h, first + 4u) + lane;
  let keys_at = key_at(b, h, 0u);
  var tops: array<f32, 8>;
  var totals: array<f32, 8>;
  for (var r = 0u; r < 8u; r++) {
    tops[r] = ABSENT;
    totals[r] = 0.0;
  }
  let end = key_end(first + 8u);
  for (var begin = 0u; begin < end; begin += KEYS) {
    let keys = min(KEYS, end - begin);
    for (var g = 0u; g < keys; g += 16u) {
      set_tile(array<vec4<f32>, 8>());
      let at = keys_at + min(begin + g + columns, vec4<u32>(params.m - 1u)) * stride;
      for (var d = 0u; d < params.head; d += 4u) {
        let inside = WIDE || d + lane < params.head;
        multiply(q_rows(upper_q + d, inside), q_rows(lower_q + d, inside), cut_block(k_block(at + d), d));
      }
      var scores = tile();
      for (var r = 0u; r < 8u; r++) {
        let s = masked(scores[r] * (params.scale * LOG2E), b, h, vec4<u32>(first + r), begin + g + columns);
        keep(0u, r, g, s);
      }
    }
    for (var r = 0u; r < 8u; r++) {
      var high = vec4<f32>(tops[r]);
      for (var g = 0u; g < keys; g += 16u) {
        high = max(high, kept_of(0u, r, g));
      }
      let top = subgroupMax(max(max(high.x, high.y), max(high.z, high.w)));
      let shrink = power(vec4<f32>(tops[r] - top)).x;
      tops[r] = top;
      var total = vec4<f32>();
      for (var g = 0u; g < keys; g += 16u) {
        let p = power(kept_of(0u, r, g) - top);
        keep(0u, r, g, p);
        total += p;
      }
      totals[r] = totals[r] * shrink + subgroupAdd((total.x + total.y) + (total.z + total.w));
      for (var d = 0u; d < HEAD / 4u; d++) {
        sums[r * (HEAD / 4u) + d] *= shrink;
      }
    }
    for (var n = 0u; n < params.head; n += 16u) {
      load_sums(0u, n);
      for (var key = 0u; key < keys; key += 4u) {
        let at = keys_at + n + lane + min(vec4<u32>(begin + key) + ALONG, vec4<u32>(params.m - 1u)) * stride;
        multiply(kept_rows(0u, 0u, key), kept_rows(0u, 4u, key), v_lines(at));
      }
      save_sums(0u, n);
    }
  }
  for (var r = 0u; r < 8u; r++) {
    if (first + r >= params.t) {
      break;
    }
    let empty = tops[r] < EMPTY;
    let factor = select(1.0 / totals[r], 0.0, empty);
    let at = query_at(b, h, first + r);
    for (var d = lane; d < params.head; d += 4u) {
      o[at + d] = X(sum_at(0u, r, d) * factor);
    }
    if (lane == 0u) {
      lse[(b * params.heads + h) * params.t + first + r] = select((tops[r] + log2(totals[r])) / LOG2E, 0.0, empty);
    }
  }
}
