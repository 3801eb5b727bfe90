// Packs f32 numbers x [count / n, n] into words: the layouts are described in lib/weights_half.wgsl and lib/weights_blocks.wgsl. int8 and int4 take two
// dispatches: `scales`, an invocation for each column of each band of 32 rows, and then `levels`, one for each word of levels.
// include lib/index.wgsl
// prologue
const BITS = 8u; // of a level
// end prologue

struct Params {
  count: u32,
  n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<u32>;

const BAND_WORDS = BITS + 1u; // of a band, for each column

fn element(i: u32) -> f32 {
  return select(0.0, x[i], i < params.count);
}

@compute @workgroup_size(64)
fn halves(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i * 2u < params.count) {
    w[i] = pack2x16float(vec2<f32>(element(i * 2u), element(i * 2u + 1u)));
  }
}

// Rounds to nearest, ties to even.
fn upper_half(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

@compute @workgroup_size(64)
fn upper_halves(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i * 2u < params.count) {
    w[i] = upper_half(element(i * 2u)) | (upper_half(element(i * 2u + 1u)) << 16u);
  }
}

@compute @workgroup_size(64)
fn scales(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let band = i / params.n;
  let column = i % params.n;
  if (band * 32u * params.n >= params.count) {
    return;
  }
  // The number of largest magnitude.
  var extreme = 0.0;
  for (var row = band * 32u; row < band * 32u + 32u; row++) {
    let v = element(row * params.n + column);
    extreme = select(extreme, v, abs(v) > abs(extreme));
  }
  w[band * BAND_WORDS * params.n + column] = bitcast<u32>(select(extreme / -8.0, abs(extreme) / 127.0, BITS == 8u));
}

@compute @workgroup_size(64)
fn levels(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let each = 32u / BITS;
  if (i * each >= params.count) {
    return;
  }
  // 32 rows of a band hold BITS words of levels for each column.
  let band = i / (BITS * params.n);
  let base = band * BAND_WORDS * params.n;
  var word = 0u;
  for (var k = 0u; k < each; k++) {
    let scale = bitcast<f32>(w[base + (i * each + k) % params.n]);
    let level = select(0.0, round(element(i * each + k) / scale), scale != 0.0);
    let limits = select(vec2<f32>(-8.0, 7.0), vec2<f32>(-127.0, 127.0), BITS == 8u);
    word |= extractBits(bitcast<u32>(i32(clamp(level, limits.x, limits.y))), 0u, BITS) << (k * BITS);
  }
  w[base + params.n + i % (BITS * params.n)] = word;
}
