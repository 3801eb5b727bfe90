// Gradients of attention (see attention_grad.wgsl) for GPUs: a workgroup of 64 owns 16 query rows (or keys) and takes 64 keys (or query rows)
// at a time. Thread (group, column) has own rows 4·group … +3; of the products it has columns column + 16·i, of the sums the channels
// 4·(column + 16·n) … +3.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>; // storage of q, k, v and all of their shape
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const BLOCKS = 1u; // D / 64 rounded up
// end prologue
// include lib/lanes_4.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_dout.wgsl
// include lib/attention_grad_store.wgsl

// Eight channels of the own rows and of the others, [channel / 4][row]: q and dO, or k and v.
var<workgroup> own_tile: array<vec4<f32>, 32>;
var<workgroup> own_grad_tile: array<vec4<f32>, 32>;
var<workgroup> tile: array<vec4<f32>, 128>;
var<workgroup> grad_tile: array<vec4<f32>, 128>;
// P and scale·dS, [other row][group], own rows in the components.
var<workgroup> weights: array<vec4<f32>, 256>;
var<workgroup> score_grads: array<vec4<f32>, 256>;

// Products over the eight channels: column i belongs to the other row column + 16·i, own rows in the components.
fn multiply(s: ptr<function, mat4x4<f32>>, p: ptr<function, mat4x4<f32>>, group: u32, column: u32) {
  for (var e = 0u; e < 2u; e++) {
    let at = e * 16u + group * 4u;
    let other = e * 64u + column;
    let x = mat4x4<f32>(own_tile[at], own_tile[at + 1u], own_tile[at + 2u], own_tile[at + 3u]);
    *s += mat4x4<f32>(tile[other] * x, tile[other + 16u] * x, tile[other + 32u] * x, tile[other + 48u] * x);
    let g = mat4x4<f32>(own_grad_tile[at], own_grad_tile[at + 1u], own_grad_tile[at + 2u], own_grad_tile[at + 3u]);
    *p += mat4x4<f32>(grad_tile[other] * g, grad_tile[other + 16u] * g, grad_tile[other + 32u] * g, grad_tile[other + 48u] * g);
  }
}

// a + (each component of w) times x, one column for each own row.
fn outer_add(a: mat4x4<f32>, x: vec4<f32>, w: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(a[0] + w.x * x, a[1] + w.y * x, a[2] + w.z * x, a[3] + w.w * x);
}

@compute @workgroup_size(64)
fn grad_q(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
  let z0 = stats_at(b, h, t.x);
  let z1 = stats_at(b, h, t.y);
  let z2 = stats_at(b, h, t.z);
  let z3 = stats_at(b, h, t.w);
  let log_sum = vec4<f32>(z0.x, z1.x, z2.x, z3.x);
  let delta = vec4<f32>(z0.y, z1.y, z2.y, z3.y);
  var sums: array<mat4x4<f32>, BLOCKS>; // column c belongs to row t[c]
  let end = key_end(first + 16u);
  for (var j = 0u; j < end; j += 64u) {
    // Said, not left to `var s: mat4x4<f32>;`: Dawn's SPIR-V zeroes that before the loop only.
    var s = mat4x4<f32>();
    var p = mat4x4<f32>();
    for (var d = 0u; d < params.head4; d += 2u) {
      workgroupBarrier();
      let part = lane % 2u;
      let inside = d + part < params.head4;
      for (var e = lane / 2u; e < 64u; e += 32u) {
        let at = key_at(b, h, j + e);
        tile[part * 64u + e] = select(vec4<f32>(), read_k(at, d + part), inside);
        grad_tile[part * 64u + e] = select(vec4<f32>(), read_v(at, d + part), inside);
      }
      if (lane < 32u) {
        let at = query_at(b, h, first + lane / 2u);
        own_tile[part * 16u + lane / 2u] = select(vec4<f32>(), read_q(at, d + part), inside);
        own_grad_tile[part * 16u + lane / 2u] = select(vec4<f32>(), read_dout(at, d + part), inside);
      }
      workgroupBarrier();
      multiply(&s, &p, group, column);
    }
    for (var i = 0u; i < 4u; i++) {
      let key = column + 16u * i;
      score_grads[key * 4u + group] = power(masked(s[i] * (params.scale * LOG2E), b, h, t, vec4<u32>(j + key)) - log_sum) * (p[i] - delta) * params.scale;
    }
    workgroupBarrier();
    for (var n = 0u; n < BLOCKS; n++) {
      let d = column + 16u * n;
      if (d < params.head4) {
        var y = sums[n];
        for (var e = 0u; e < 64u; e++) {
          y = outer_add(y, read_k(key_at(b, h, j + e), d), score_grads[e * 4u + group]);
        }
        sums[n] = y;
      }
    }
  }
  for (var n = 0u; n < BLOCKS; n++) {
    for (var c = 0u; c < 4u; c++) {
      store_dq(t[c], query_at(b, h, t[c]), column + 16u * n, sums[n][c]);
    }
  }
}

@compute @workgroup_size(64)
fn grad_kv(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * 16u;
  let group = lane / 16u;
  let column = lane % 16u;
  let j = vec4<u32>(first + group * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
  var key_sums: array<mat4x4<f32>, BLOCKS>; // column c belongs to key j[c]
  var value_sums: array<mat4x4<f32>, BLOCKS>;
  // Earlier rows see none of these keys.
  var begin = 0u;
  if (CAUSAL) {
    begin = first;
  }
  for (var t = begin; t < params.t; t += 64u) {
    var s = mat4x4<f32>();
    var p = mat4x4<f32>();
    for (var d = 0u; d < params.head4; d += 2u) {
      workgroupBarrier();
      let part = lane % 2u;
      let inside = d + part < params.head4;
      for (var e = lane / 2u; e < 64u; e += 32u) {
        let at = query_at(b, h, t + e);
        tile[part * 64u + e] = select(vec4<f32>(), read_q(at, d + part), inside);
        grad_tile[part * 64u + e] = select(vec4<f32>(), read_dout(at, d + part), inside);
      }
      if (lane < 32u) {
        let at = key_at(b, h, first + lane / 2u);
        own_tile[part * 16u + lane / 2u] = select(vec4<f32>(), read_k(at, d + part), inside);
        own_grad_tile[part * 16u + lane / 2u] = select(vec4<f32>(), read_v(at, d + part), inside);
      }
      workgroupBarrier();
      multiply(&s, &p, group, column);
    }
    for (var i = 0u; i < 4u; i++) {
      let row = column + 16u * i;
      let z = stats_at(b, h, t + row);
      let weight = power(masked(s[i] * (params.scale * LOG2E), b, h, vec4<u32>(t + row), j) - z.x) * select(0.0, 1.0, t + row < params.t);
      weights[row * 4u + group] = weight;
      score_grads[row * 4u + group] = weight * (p[i] - z.y) * params.scale;
    }
    workgroupBarrier();
    for (var n = 0u; n < BLOCKS; n++) {
      let d = column + 16u * n;
      if (d < params.head4) {
        var y = key_sums[n];
        var z = value_sums[n];
        for (var e = 0u; e < 64u; e++) {
          let at = query_at(b, h, t + e);
          y = outer_add(y, read_q(at, d), score_grads[e * 4u + group]);
          z = outer_add(z, read_dout(at, d), weights[e * 4u + group]);
        }
        key_sums[n] = y;
        value_sums[n] = z;
      }
    }
  }
  for (var n = 0u; n < BLOCKS; n++) {
    for (var c = 0u; c < 4u; c++) {
      store_dkv(j[c], key_at(b, h, j[c]), column + 16u * n, key_sums[n][c], value_sums[n][c]);
    }
  }
}
