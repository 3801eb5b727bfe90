// Attention by online softmax (Dao et al. 2022, Dao 2023) without workgroup memory, for software adapters with short vectors: an invocation owns two blocks
// of four query rows and goes over the keys in chunks of eight. Loads, as dear there as six products, and arrays, as dear as loads, serve for eight products each,
// where attention.wgsl has half of it; an array of the queries would only be cleared at length. Loop bounds come from params, since unrolled heads take such adapters
// minutes to compile.
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>; // storage of q, k, v and all of their shape
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4
const CAUSAL = false;
const HEAD4 = 16u; // at least D / 4
// end prologue
// include lib/lanes_4.wgsl
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl
// include lib/attention_store.wgsl

// Of each row, a column of a matrix; the blocks take turns. Heads of 256 fill the 8 KiB that WebGPU grants variables of a module.
var<private> sums: array<mat4x4<f32>, 2u * HEAD4>;

override LANES = 8u;

// Four channels, a column each, of the four query rows that begin at the elements `at`.
fn queries(at: vec4<u32>, d: u32) -> mat4x4<f32> {
  return params.scale * LOG2E * transpose(mat4x4<f32>(read_q(at.x, d), read_q(at.y, d), read_q(at.z, d), read_q(at.w, d)));
}

// Four channels of four keys, a column each.
fn keys(at: vec4<u32>, d: u32) -> mat4x4<f32> {
  return mat4x4<f32>(read_k(at.x, d), read_k(at.y, d), read_k(at.z, d), read_k(at.w, d));
}

fn values(at: vec4<u32>, d: u32) -> mat4x4<f32> {
  return mat4x4<f32>(read_v(at.x, d), read_v(at.y, d), read_v(at.z, d), read_v(at.w, d));
}

// First elements of head h of rows of image b, of which there are `count`; rows past the end repeat the last one.
fn elements_at(b: u32, h: u32, row: vec4<u32>, count: u32) -> vec4<u32> {
  return ((b * count + min(row, vec4<u32>(count - 1u))) * params.heads + h) * params.head;
}

// Scores of four rows with four keys, a column for each key.
fn masked_block(s: mat4x4<f32>, b: u32, h: u32, t: vec4<u32>, j: u32) -> mat4x4<f32> {
  return mat4x4<f32>(masked(s[0], b, h, t, vec4<u32>(j)), masked(s[1], b, h, t, vec4<u32>(j + 1u)), masked(s[2], b, h, t, vec4<u32>(j + 2u)), masked(s[3], b, h, t, vec4<u32>(j + 3u)));
}

fn highest(s: mat4x4<f32>) -> vec4<f32> {
  return max(max(s[0], s[1]), max(s[2], s[3]));
}

fn powers(s: mat4x4<f32>, high: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(power(s[0] - high), power(s[1] - high), power(s[2] - high), power(s[3] - high));
}

fn total_of(s: mat4x4<f32>) -> vec4<f32> {
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// Adds a chunk's values, weighted by the powers of its scores, to the sums of a block.
fn add_values(i: u32, shrink: vec4<f32>, s0: mat4x4<f32>, s1: mat4x4<f32>, v0: mat4x4<f32>, v1: mat4x4<f32>) {
  let y = sums[i];
  sums[i] = mat4x4<f32>(y[0] * shrink.x, y[1] * shrink.y, y[2] * shrink.z, y[3] * shrink.w) + v0 * transpose(s0) + v1 * transpose(s1);
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
  let b = w / params.tiles / params.heads;
  let h = w / params.tiles % params.heads;
  let first = w % params.tiles * LANES * 8u;
  let along = vec4<u32>(0u, 1u, 2u, 3u);
  let t0 = along + first + lane * 8u;
  let t1 = t0 + 4u;
  let i0 = elements_at(b, h, t0, params.t);
  let i1 = elements_at(b, h, t1, params.t);
  var top0 = vec4<f32>(ABSENT);
  var top1 = top0;
  var total0 = vec4<f32>();
  var total1 = total0;
  let end = key_end(first + LANES * 8u);
  for (var j = 0u; j < end; j += 8u) {
    let upper = elements_at(b, h, along + j, params.m);
    let lower = elements_at(b, h, along + j + 4u, params.m);
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    for (var d = 0u; d < params.head4; d++) {
      let k0 = keys(upper, d);
      let k1 = keys(lower, d);
      let x0 = queries(i0, d);
      let x1 = queries(i1, d);
      s00 += x0 * k0;
      s01 += x0 * k1;
      s10 += x1 * k0;
      s11 += x1 * k1;
    }
    s00 = masked_block(s00, b, h, t0, j);
    s01 = masked_block(s01, b, h, t0, j + 4u);
    s10 = masked_block(s10, b, h, t1, j);
    s11 = masked_block(s11, b, h, t1, j + 4u);
    // One rescaling for the whole chunk; the division by the sum waits until the end.
    let high0 = max(top0, max(highest(s00), highest(s01)));
    let high1 = max(top1, max(highest(s10), highest(s11)));
    let shrink0 = power(top0 - high0);
    let shrink1 = power(top1 - high1);
    top0 = high0;
    top1 = high1;
    s00 = powers(s00, high0);
    s01 = powers(s01, high0);
    s10 = powers(s10, high1);
    s11 = powers(s11, high1);
    total0 = total0 * shrink0 + (total_of(s00) + total_of(s01));
    total1 = total1 * shrink1 + (total_of(s10) + total_of(s11));
    for (var d = 0u; d < params.head4; d++) {
      let v0 = values(upper, d);
      let v1 = values(lower, d);
      add_values(2u * d, shrink0, s00, s01, v0, v1);
      add_values(2u * d + 1u, shrink1, s10, s11, v0, v1);
    }
  }
  for (var r = 0u; r < 2u; r++) {
    let second = vec4<bool>(r == 1u);
    let t = select(t0, t1, second);
    let at = select(i0, i1, second);
    let top = select(top0, top1, second);
    let total = select(total0, total1, second);
    let empty = top < vec4<f32>(EMPTY);
    let factor = select(vec4<f32>(1.0) / total, vec4<f32>(), empty);
    let log_sum = select((top + log2(total)) / LOG2E, vec4<f32>(), empty);
    for (var c = 0u; c < 4u; c++) {
      for (var d = 0u; d < params.head4; d++) {
        store(t[c], at[c], d, sums[2u * d + r][c] * factor[c]);
      }
      if (t[c] < params.t) {
        lse[(b * params.heads + h) * params.t + t[c]] = log_sum[c];
      }
    }
  }
}
