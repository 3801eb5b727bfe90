// Attention by online softmax (Dao et al. 2022, Dao 2023) for GPUs: a workgroup of 64 computes 16 query rows of one head against 64 keys at a
// time. Thread (group, column) owns rows 4·group … +3; of the scores it has keys column + 16·i, of the result channels 4·(column + 16·n) … +3.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>; // storage of q, k, v and o
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const BLOCKS = 1u; // D / 64 rounded up
// end prologue
// include lib/lanes_4.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_store.wgsl

// Sixteen channels of the rows and of the keys: [channel / 4][row or key].
var<workgroup> row_tile: array<vec4<f32>, 64>;
var<workgroup> key_tile: array<vec4<f32>, 256>;
var<workgroup> weights: array<vec4<f32>, 256>; // probabilities [key][group], rows in the components
var<workgroup> partial: array<vec4<f32>, 64>; // [group][column]

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * 16u;
  let group = lane / 16u;
  let column = lane % 16u;
  let t = vec4<u32>(first + group * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
  var sums: array<mat4x4<f32>, BLOCKS>; // column c belongs to row t[c]
  var top = vec4<f32>(ABSENT);
  var total = vec4<f32>(); // over this thread's keys only, until the end
  let end = key_end(first + 16u);
  for (var j = 0u; j < end; j += 64u) {
    // Said, not left to `var s: mat4x4<f32>;`: Dawn's SPIR-V zeroes that before the loop only.
    var s = mat4x4<f32>(); // column i belongs to key j + column + 16·i, rows in the components
    for (var d = 0u; d < params.head4; d += 4u) {
      workgroupBarrier();
      let dd = d + lane % 4u;
      let inside = dd < params.head4;
      row_tile[lane % 4u * 16u + lane / 4u] = select(vec4<f32>(), read_q(query_at(b, h, first + lane / 4u), dd) * (params.scale * LOG2E), inside);
      for (var e = lane / 4u; e < 64u; e += 16u) {
        key_tile[lane % 4u * 64u + e] = select(vec4<f32>(), read_k(key_at(b, h, j + e), dd), inside);
      }
      workgroupBarrier();
      for (var e = 0u; e < 4u; e++) {
        let at = e * 16u + group * 4u;
        let x = mat4x4<f32>(row_tile[at], row_tile[at + 1u], row_tile[at + 2u], row_tile[at + 3u]);
        let key = e * 64u + column;
        s += mat4x4<f32>(key_tile[key] * x, key_tile[key + 16u] * x, key_tile[key + 32u] * x, key_tile[key + 48u] * x);
      }
    }
    let key = j + column;
    let s0 = masked(s[0], b, h, t, vec4<u32>(key));
    let s1 = masked(s[1], b, h, t, vec4<u32>(key + 16u));
    let s2 = masked(s[2], b, h, t, vec4<u32>(key + 32u));
    let s3 = masked(s[3], b, h, t, vec4<u32>(key + 48u));
    partial[lane] = max(max(s0, s1), max(s2, s3));
    workgroupBarrier();
    var high = top;
    for (var e = 0u; e < 16u; e++) {
      high = max(high, partial[group * 16u + e]);
    }
    let shrink = power(top - high);
    top = high;
    let p0 = power(s0 - high);
    let p1 = power(s1 - high);
    let p2 = power(s2 - high);
    let p3 = power(s3 - high);
    total = total * shrink + ((p0 + p1) + (p2 + p3));
    weights[column * 4u + group] = p0;
    weights[(column + 16u) * 4u + group] = p1;
    weights[(column + 32u) * 4u + group] = p2;
    weights[(column + 48u) * 4u + group] = p3;
    workgroupBarrier();
    for (var n = 0u; n < BLOCKS; n++) {
      let d = column + 16u * n;
      if (d < params.head4) {
        let y = sums[n];
        var y0 = y[0] * shrink.x;
        var y1 = y[1] * shrink.y;
        var y2 = y[2] * shrink.z;
        var y3 = y[3] * shrink.w;
        for (var e = 0u; e < 64u; e++) {
          let p = weights[e * 4u + group];
          let x = read_v(key_at(b, h, j + e), d);
          y0 += p.x * x;
          y1 += p.y * x;
          y2 += p.z * x;
          y3 += p.w * x;
        }
        sums[n] = mat4x4<f32>(y0, y1, y2, y3);
      }
    }
  }
  // The barrier after the weights came after every read of the maxima.
  partial[lane] = total;
  workgroupBarrier();
  total = vec4<f32>();
  for (var e = 0u; e < 16u; e++) {
    total += partial[group * 16u + e];
  }
  let empty = top < vec4<f32>(EMPTY);
  let factor = select(vec4<f32>(1.0) / total, vec4<f32>(), empty);
  let log_sum = select((top + log2(total)) / LOG2E, vec4<f32>(), empty);
  for (var n = 0u; n < BLOCKS; n++) {
    let d = column + 16u * n;
    let y = sums[n];
    store(t.x, query_at(b, h, t.x), d, y[0] * factor.x);
    store(t.y, query_at(b, h, t.y), d, y[1] * factor.y);
    store(t.z, query_at(b, h, t.z), d, y[2] * factor.z);
    store(t.w, query_at(b, h, t.w), d, y[3] * factor.w);
  }
  if (column < 4u && t[column] < params.t) {
    lse[(b * params.heads + h) * params.t + t[column]] = log_sum[column];
  }
}
