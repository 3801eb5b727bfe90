// Gradients of attention, with the probabilities computed again from the log-sum: P = exp(S − lse), dP = dO·Vᵀ, dS = P∘(dP − δ),
// dQ = scale·dS·K, dK = scale·dSᵀ·Q, dV = Pᵀ·dO (Dao et al. 2022, algorithm 4). One kernel goes over keys for each query row, one over query
// rows for each key, so nothing is added up by several invocations. An invocation owns four rows (keys) and takes the others four at a time.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>; // storage of q, k, v and all of their shape
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const HEAD4 = 16u; // at least D / 4
const SLICE4 = 16u; // channels / 4 of which grad_kv keeps sums at a time
const RESIDENT = true; // the own rows stay in registers; large heads are read again for every chunk
const RESIDENT4 = 16u; // HEAD4, or 1 without residence
// end prologue
// include lib/lanes_4.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_dout.wgsl
// include lib/attention_grad_store.wgsl

override LANES = 8u;

@compute @workgroup_size(LANES)
fn grad_q(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * LANES * 4u;
  let t = vec4<u32>(first + lane * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
  let i0 = query_at(b, h, t.x);
  let z0 = stats_at(b, h, t.x);
  let i1 = query_at(b, h, t.y);
  let z1 = stats_at(b, h, t.y);
  let i2 = query_at(b, h, t.z);
  let z2 = stats_at(b, h, t.z);
  let i3 = query_at(b, h, t.w);
  let z3 = stats_at(b, h, t.w);
  let log_sum = vec4<f32>(z0.x, z1.x, z2.x, z3.x);
  let delta = vec4<f32>(z0.y, z1.y, z2.y, z3.y);
  // Column c of each matrix belongs to row t[c].
  var rows: array<mat4x4<f32>, RESIDENT4>;
  var douts: array<mat4x4<f32>, RESIDENT4>;
  var sums: array<mat4x4<f32>, HEAD4>;
  for (var d = 0u; d < params.head4; d++) {
    if (RESIDENT) {
      rows[d] = mat4x4<f32>(read_q(i0, d), read_q(i1, d), read_q(i2, d), read_q(i3, d));
      douts[d] = mat4x4<f32>(read_dout(i0, d), read_dout(i1, d), read_dout(i2, d), read_dout(i3, d));
    }
    sums[d] = mat4x4<f32>();
  }
  let end = key_end(first + LANES * 4u);
  for (var j = 0u; j < end; j += 4u) {
    let k0 = key_at(b, h, j + 0u);
    let k1 = key_at(b, h, j + 1u);
    let k2 = key_at(b, h, j + 2u);
    let k3 = key_at(b, h, j + 3u);
    var s0 = vec4<f32>();
    var p0 = vec4<f32>();
    var s1 = vec4<f32>();
    var p1 = vec4<f32>();
    var s2 = vec4<f32>();
    var p2 = vec4<f32>();
    var s3 = vec4<f32>();
    var p3 = vec4<f32>();
    for (var d = 0u; d < params.head4; d++) {
      var x: mat4x4<f32>;
      var g: mat4x4<f32>;
      if (RESIDENT) {
        x = rows[d];
        g = douts[d];
      } else {
        x = mat4x4<f32>(read_q(i0, d), read_q(i1, d), read_q(i2, d), read_q(i3, d));
        g = mat4x4<f32>(read_dout(i0, d), read_dout(i1, d), read_dout(i2, d), read_dout(i3, d));
      }
      s0 += read_k(k0, d) * x;
      p0 += read_v(k0, d) * g;
      s1 += read_k(k1, d) * x;
      p1 += read_v(k1, d) * g;
      s2 += read_k(k2, d) * x;
      p2 += read_v(k2, d) * g;
      s3 += read_k(k3, d) * x;
      p3 += read_v(k3, d) * g;
    }
    s0 = power(masked(s0 * (params.scale * LOG2E), b, h, t, vec4<u32>(j + 0u)) - log_sum) * (p0 - delta) * params.scale;
    s1 = power(masked(s1 * (params.scale * LOG2E), b, h, t, vec4<u32>(j + 1u)) - log_sum) * (p1 - delta) * params.scale;
    s2 = power(masked(s2 * (params.scale * LOG2E), b, h, t, vec4<u32>(j + 2u)) - log_sum) * (p2 - delta) * params.scale;
    s3 = power(masked(s3 * (params.scale * LOG2E), b, h, t, vec4<u32>(j + 3u)) - log_sum) * (p3 - delta) * params.scale;
    for (var d = 0u; d < params.head4; d++) {
      let y = sums[d];
      let x0 = read_k(k0, d);
      let x1 = read_k(k1, d);
      let x2 = read_k(k2, d);
      let x3 = read_k(k3, d);
      let x = mat4x4<f32>(x0, x1, x2, x3);
      sums[d] = mat4x4<f32>(
        y[0] + x * vec4<f32>(s0.x, s1.x, s2.x, s3.x),
        y[1] + x * vec4<f32>(s0.y, s1.y, s2.y, s3.y),
        y[2] + x * vec4<f32>(s0.z, s1.z, s2.z, s3.z),
        y[3] + x * vec4<f32>(s0.w, s1.w, s2.w, s3.w),
      );
    }
  }
  for (var d = 0u; d < params.head4; d++) {
    let y = sums[d];
    store_dq(t.x, i0, d, y[0]);
    store_dq(t.y, i1, d, y[1]);
    store_dq(t.z, i2, d, y[2]);
    store_dq(t.w, i3, d, y[3]);
  }
}

// Two sums for each channel of four keys take half of the memory that WGSL grants a function at D = 128: larger heads are cut into slices of
// SLICE4·4 channels, one invocation for each, all of which compute the same scores.
@compute @workgroup_size(LANES)
fn grad_kv(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let slices = (params.head4 + SLICE4 - 1u) / SLICE4;
  let from_d = w % slices * SLICE4;
  let b = w / slices / params.tiles / params.heads;
  let h = w / slices / params.tiles % params.heads;
  let first = w / slices % params.tiles * LANES * 4u;
  let j = vec4<u32>(first + lane * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
  let i0 = key_at(b, h, j.x);
  let i1 = key_at(b, h, j.y);
  let i2 = key_at(b, h, j.z);
  let i3 = key_at(b, h, j.w);
  // Column c of each matrix belongs to key j[c].
  var keys: array<mat4x4<f32>, RESIDENT4>;
  var values: array<mat4x4<f32>, RESIDENT4>;
  var key_sums: array<mat4x4<f32>, SLICE4>;
  var value_sums: array<mat4x4<f32>, SLICE4>;
  for (var d = 0u; d < params.head4; d++) {
    if (RESIDENT) {
      keys[d] = mat4x4<f32>(read_k(i0, d), read_k(i1, d), read_k(i2, d), read_k(i3, d));
      values[d] = mat4x4<f32>(read_v(i0, d), read_v(i1, d), read_v(i2, d), read_v(i3, d));
    }
  }
  let slice_end = min(SLICE4, params.head4 - from_d);
  for (var d = 0u; d < slice_end; d++) {
    key_sums[d] = mat4x4<f32>();
    value_sums[d] = mat4x4<f32>();
  }
  // Earlier rows see none of these keys.
  var begin = 0u;
  if (CAUSAL) {
    begin = first;
  }
  for (var t = begin; t < params.t; t += 4u) {
    let q0 = query_at(b, h, t + 0u);
    let q1 = query_at(b, h, t + 1u);
    let q2 = query_at(b, h, t + 2u);
    let q3 = query_at(b, h, t + 3u);
    var s0 = vec4<f32>();
    var p0 = vec4<f32>();
    var s1 = vec4<f32>();
    var p1 = vec4<f32>();
    var s2 = vec4<f32>();
    var p2 = vec4<f32>();
    var s3 = vec4<f32>();
    var p3 = vec4<f32>();
    for (var d = 0u; d < params.head4; d++) {
      var x: mat4x4<f32>;
      var g: mat4x4<f32>;
      if (RESIDENT) {
        x = keys[d];
        g = values[d];
      } else {
        x = mat4x4<f32>(read_k(i0, d), read_k(i1, d), read_k(i2, d), read_k(i3, d));
        g = mat4x4<f32>(read_v(i0, d), read_v(i1, d), read_v(i2, d), read_v(i3, d));
      }
      s0 += read_q(q0, d) * x;
      p0 += read_dout(q0, d) * g;
      s1 += read_q(q1, d) * x;
      p1 += read_dout(q1, d) * g;
      s2 += read_q(q2, d) * x;
      p2 += read_dout(q2, d) * g;
      s3 += read_q(q3, d) * x;
      p3 += read_dout(q3, d) * g;
    }
    let z0 = stats_at(b, h, t + 0u);
    s0 = power(masked(s0 * (params.scale * LOG2E), b, h, vec4<u32>(t + 0u), j) - z0.x) * select(0.0, 1.0, t + 0u < params.t);
    p0 = s0 * (p0 - z0.y) * params.scale;
    let z1 = stats_at(b, h, t + 1u);
    s1 = power(masked(s1 * (params.scale * LOG2E), b, h, vec4<u32>(t + 1u), j) - z1.x) * select(0.0, 1.0, t + 1u < params.t);
    p1 = s1 * (p1 - z1.y) * params.scale;
    let z2 = stats_at(b, h, t + 2u);
    s2 = power(masked(s2 * (params.scale * LOG2E), b, h, vec4<u32>(t + 2u), j) - z2.x) * select(0.0, 1.0, t + 2u < params.t);
    p2 = s2 * (p2 - z2.y) * params.scale;
    let z3 = stats_at(b, h, t + 3u);
    s3 = power(masked(s3 * (params.scale * LOG2E), b, h, vec4<u32>(t + 3u), j) - z3.x) * select(0.0, 1.0, t + 3u < params.t);
    p3 = s3 * (p3 - z3.y) * params.scale;
    for (var d = 0u; d < slice_end; d++) {
      let x0 = read_q(q0, from_d + d);
      let g0 = read_dout(q0, from_d + d);
      let x1 = read_q(q1, from_d + d);
      let g1 = read_dout(q1, from_d + d);
      let x2 = read_q(q2, from_d + d);
      let g2 = read_dout(q2, from_d + d);
      let x3 = read_q(q3, from_d + d);
      let g3 = read_dout(q3, from_d + d);
      let x = mat4x4<f32>(x0, x1, x2, x3);
      let g = mat4x4<f32>(g0, g1, g2, g3);
      let y = key_sums[d];
      let z = value_sums[d];
      key_sums[d] = mat4x4<f32>(
        y[0] + x * vec4<f32>(p0.x, p1.x, p2.x, p3.x),
        y[1] + x * vec4<f32>(p0.y, p1.y, p2.y, p3.y),
        y[2] + x * vec4<f32>(p0.z, p1.z, p2.z, p3.z),
        y[3] + x * vec4<f32>(p0.w, p1.w, p2.w, p3.w),
      );
      value_sums[d] = mat4x4<f32>(
        z[0] + g * vec4<f32>(s0.x, s1.x, s2.x, s3.x),
        z[1] + g * vec4<f32>(s0.y, s1.y, s2.y, s3.y),
        z[2] + g * vec4<f32>(s0.z, s1.z, s2.z, s3.z),
        z[3] + g * vec4<f32>(s0.w, s1.w, s2.w, s3.w),
      );
    }
  }
  for (var d = 0u; d < slice_end; d++) {
    let y = key_sums[d];
    let z = value_sums[d];
    store_dkv(j.x, i0, from_d + d, y[0], z[0]);
    store_dkv(j.y, i1, from_d + d, y[1], z[1]);
    store_dkv(j.z, i2, from_d + d, y[2], z[2]);
    store_dkv(j.w, i3, from_d + d, y[3], z[3]);
  }
}
