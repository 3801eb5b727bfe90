// Operands of the attention kernels: q [B,T,heads·D], k and v [B,M,heads·D]; heads are addressed by stride.
// Heads are read four channels at a time; with D not divisible by 4 (WIDE = false) the last four are filled up with zeros.
// Scores are kept in units of log 2, since exp2 is what hardware has.
struct Params {
  batch: u32,
  t: u32,
  m: u32,
  heads: u32,
  head: u32, // D
  head4: u32, // D / 4 rounded up
  tiles: u32, // of rows (or keys) of one head
  count: u32, // workgroups, or invocations for elementwise entry points
  mask_b: u32, // strides of the mask, 0 where it is broadcast
  mask_h: u32,
  mask_t: u32,
  mask_m: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<X>;
@group(0) @binding(2) var<storage, read> k: array<X>;
@group(0) @binding(3) var<storage, read> v: array<X>;

const LOG2E = 1.44269504f;
// Score of a key that is not there: below every score, and finite, since WGSL need not know infinities.
const ABSENT = -3.0e38f;
// A row whose highest score is below this was masked out entirely.
const EMPTY = -1.0e37f;

// Zero beyond the head's end.
fn cut(x: vec4<f32>, d: u32) -> vec4<f32> {
  return select(vec4<f32>(), x, vec4<u32>(4u * d) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.head));
}

// Channels 4d … 4d+3 of the head that begins at element i. X4(…) takes a scalar or a vec4 alike: the branch not taken must still compile.
fn read_q(i: u32, d: u32) -> vec4<f32> {
  if (WIDE) {
    return vec4<f32>(X4(q[i / 4u + d]));
  }
  let at = i + 4u * d;
  return cut(vec4<f32>(vec4<f32>(X4(q[at])).x, vec4<f32>(X4(q[at + 1u])).x, vec4<f32>(X4(q[at + 2u])).x, vec4<f32>(X4(q[at + 3u])).x), d);
}

fn read_k(i: u32, d: u32) -> vec4<f32> {
  if (WIDE) {
    return vec4<f32>(X4(k[i / 4u + d]));
  }
  let at = i + 4u * d;
  return cut(vec4<f32>(vec4<f32>(X4(k[at])).x, vec4<f32>(X4(k[at + 1u])).x, vec4<f32>(X4(k[at + 2u])).x, vec4<f32>(X4(k[at + 3u])).x), d);
}

fn read_v(i: u32, d: u32) -> vec4<f32> {
  if (WIDE) {
    return vec4<f32>(X4(v[i / 4u + d]));
  }
  let at = i + 4u * d;
  return cut(vec4<f32>(vec4<f32>(X4(v[at])).x, vec4<f32>(X4(v[at + 1u])).x, vec4<f32>(X4(v[at + 2u])).x, vec4<f32>(X4(v[at + 3u])).x), d);
}

// First element of head h of query row t; rows past the end repeat the last one.
fn query_at(b: u32, h: u32, t: u32) -> u32 {
  return ((b * params.t + min(t, params.t - 1u)) * params.heads + h) * params.head;
}

fn key_at(b: u32, h: u32, j: u32) -> u32 {
  return ((b * params.m + min(j, params.m - 1u)) * params.heads + h) * params.head;
}

// exp2 of a score less a row's maximum or log-sum: far below is 0 for f32's purposes, far above only happens on rows that are not stored.
fn power(x: vec4<f32>) -> vec4<f32> {
  return exp2(clamp(x, vec4<f32>(-126.0), vec4<f32>(126.0)));
}

// Number of keys that rows before `row` can see.
fn key_end(row: u32) -> u32 {
  if (CAUSAL) {
    return min(params.m, row);
  }
  return params.m;
}

// Adds the mask to the scores s = scale·log2(e)·q·k of pairs (t, j), and removes pairs that do not exist or lie above the diagonal.
fn masked(s: vec4<f32>, b: u32, h: u32, t: vec4<u32>, j: vec4<u32>) -> vec4<f32> {
  var there = j < vec4<u32>(params.m);
  if (CAUSAL) {
    there = there & (j <= t);
  }
  return select(vec4<f32>(ABSENT), s + mask_bias(b, h, min(t, vec4<u32>(params.t - 1u)), min(j, vec4<u32>(params.m - 1u))), there);
}
