// Attention by online softmax (Dao et al. 2022, Dao 2023) without workgroup memory: an invocation owns four query rows and goes over the
// keys in chunks of eight. Loop counters and key addresses are the same in all lanes of a workgroup, so that a software adapter can read a
// key once for all of them; loop bounds come from params, since unrolled heads take such adapters minutes to compile.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>; // storage of q, k, v and all of their shape
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const HEAD4 = 16u; // at least D / 4
const RESIDENT = true; // queries stay in registers; large heads are read again for every chunk
const RESIDENT4 = 16u; // HEAD4, or 1 without residence
// end prologue
// include lib/lanes_4.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_store.wgsl

override LANES = 8u;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * LANES * 4u;
  let t = vec4<u32>(first + lane * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
  let i0 = query_at(b, h, t.x);
  let i1 = query_at(b, h, t.y);
  let i2 = query_at(b, h, t.z);
  let i3 = query_at(b, h, t.w);
  let scale = params.scale * LOG2E;
  // Column c of each matrix belongs to row t[c].
  var rows: array<mat4x4<f32>, RESIDENT4>;
  var sums: array<mat4x4<f32>, HEAD4>;
  for (var d = 0u; d < params.head4; d++) {
    if (RESIDENT) {
      rows[d] = mat4x4<f32>(read_q(i0, d) * scale, read_q(i1, d) * scale, read_q(i2, d) * scale, read_q(i3, d) * scale);
    }
    sums[d] = mat4x4<f32>();
  }
  var top = vec4<f32>(ABSENT);
  var total = vec4<f32>();
  let end = key_end(first + LANES * 4u);
  for (var j = 0u; j < end; j += 8u) {
    let k0 = key_at(b, h, j + 0u);
    let k1 = key_at(b, h, j + 1u);
    let k2 = key_at(b, h, j + 2u);
    let k3 = key_at(b, h, j + 3u);
    let k4 = key_at(b, h, j + 4u);
    let k5 = key_at(b, h, j + 5u);
    let k6 = key_at(b, h, j + 6u);
    let k7 = key_at(b, h, j + 7u);
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    var s4 = vec4<f32>();
    var s5 = vec4<f32>();
    var s6 = vec4<f32>();
    var s7 = vec4<f32>();
    for (var d = 0u; d < params.head4; d++) {
      var x: mat4x4<f32>;
      if (RESIDENT) {
        x = rows[d];
      } else {
        x = mat4x4<f32>(read_q(i0, d) * scale, read_q(i1, d) * scale, read_q(i2, d) * scale, read_q(i3, d) * scale);
      }
      s0 += read_k(k0, d) * x;
      s1 += read_k(k1, d) * x;
      s2 += read_k(k2, d) * x;
      s3 += read_k(k3, d) * x;
      s4 += read_k(k4, d) * x;
      s5 += read_k(k5, d) * x;
      s6 += read_k(k6, d) * x;
      s7 += read_k(k7, d) * x;
    }
    s0 = masked(s0, b, h, t, vec4<u32>(j + 0u));
    s1 = masked(s1, b, h, t, vec4<u32>(j + 1u));
    s2 = masked(s2, b, h, t, vec4<u32>(j + 2u));
    s3 = masked(s3, b, h, t, vec4<u32>(j + 3u));
    s4 = masked(s4, b, h, t, vec4<u32>(j + 4u));
    s5 = masked(s5, b, h, t, vec4<u32>(j + 5u));
    s6 = masked(s6, b, h, t, vec4<u32>(j + 6u));
    s7 = masked(s7, b, h, t, vec4<u32>(j + 7u));
    // One rescaling for the whole chunk; the division by the sum waits until the end.
    let high = max(max(max(max(top, s0), max(s1, s2)), max(s3, s4)), max(max(s5, s6), s7));
    let shrink = power(top - high);
    top = high;
    s0 = power(s0 - high);
    s1 = power(s1 - high);
    s2 = power(s2 - high);
    s3 = power(s3 - high);
    s4 = power(s4 - high);
    s5 = power(s5 - high);
    s6 = power(s6 - high);
    s7 = power(s7 - high);
    total = total * shrink + (((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)));
    for (var d = 0u; d < params.head4; d++) {
      let y = sums[d];
      var y0 = y[0] * shrink.x;
      var y1 = y[1] * shrink.y;
      var y2 = y[2] * shrink.z;
      var y3 = y[3] * shrink.w;
      var x = vec4<f32>();
      x = read_v(k0, d);
      y0 += s0.x * x;
      y1 += s0.y * x;
      y2 += s0.z * x;
      y3 += s0.w * x;
      x = read_v(k1, d);
      y0 += s1.x * x;
      y1 += s1.y * x;
      y2 += s1.z * x;
      y3 += s1.w * x;
      x = read_v(k2, d);
      y0 += s2.x * x;
      y1 += s2.y * x;
      y2 += s2.z * x;
      y3 += s2.w * x;
      x = read_v(k3, d);
      y0 += s3.x * x;
      y1 += s3.y * x;
      y2 += s3.z * x;
      y3 += s3.w * x;
      x = read_v(k4, d);
      y0 += s4.x * x;
      y1 += s4.y * x;
      y2 += s4.z * x;
      y3 += s4.w * x;
      x = read_v(k5, d);
      y0 += s5.x * x;
      y1 += s5.y * x;
      y2 += s5.z * x;
      y3 += s5.w * x;
      x = read_v(k6, d);
      y0 += s6.x * x;
      y1 += s6.y * x;
      y2 += s6.z * x;
      y3 += s6.w * x;
      x = read_v(k7, d);
      y0 += s7.x * x;
      y1 += s7.y * x;
      y2 += s7.z * x;
      y3 += s7.w * x;
      sums[d] = mat4x4<f32>(y0, y1, y2, y3);
    }
  }
  let empty = top < vec4<f32>(EMPTY);
  let factor = select(vec4<f32>(1.0) / total, vec4<f32>(), empty);
  let log_sum = select((top + log2(total)) / LOG2E, vec4<f32>(), empty);
  for (var d = 0u; d < params.head4; d++) {
    let y = sums[d];
    store(t.x, i0, d, y[0] * factor.x);
    store(t.y, i1, d, y[1] * factor.y);
    store(t.z, i2, d, y[2] * factor.z);
    store(t.w, i3, d, y[3] * factor.w);
  }
  for (var c = 0u; c < 4u; c++) {
    if (t[c] < params.t) {
      lse[(b * params.heads + h) * params.t + t[c]] = log_sum[c];
    }
  }
}
