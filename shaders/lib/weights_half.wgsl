// The second operand of a product as 16-bit floats, two to a word, rows one after the other: see lib/weights.wgsl. No adapter needs shader-f16 for it.
// prologue
alias W = vec2<u32>;
const W_WIDE = true; // W is a vec2: four elements
const W_EVEN = true; // rows are divisible by 4
// end prologue
// include lib/unpack_f16.wgsl

@group(0) @binding(2) var<storage, read> w: array<W>;

// vec2(…) takes a word or two alike: the branch not taken must still compile.
fn pair(i: u32) -> vec2<f32> {
  return unpack_pair(vec2<u32>(w[i]).x);
}

fn weight(i: u32) -> f32 {
  return unpack_pair(vec2<u32>(w[i / 2u]).x >> (i % 2u * 16u)).x;
}

fn table(i: u32) -> vec4<f32> {
  if (W_WIDE) {
    let words = vec2<u32>(w[i / 4u]);
    return vec4<f32>(unpack_pair(words.x), unpack_pair(words.y));
  }
  return vec4<f32>(weight(i), weight(i + 1u), weight(i + 2u), weight(i + 3u));
}

fn weights(first: u32, k: u32, n: u32) -> vec4<f32> {
  return table((first + k) * params.n + n);
}

fn weight_block(first: u32, k: u32, n: u32) -> mat4x4<f32> {
  let i = (first + k) * params.n + n;
  return mat4x4<f32>(table(i), table(i + params.n), table(i + 2u * params.n), table(i + 3u * params.n));
}

// Neighbouring lanes load neighbouring words.
fn lane_column(lane: u32, j: u32) -> u32 {
  return select(lane + 4u * j, lane * 2u + j % 2u + j / 2u * 8u, W_EVEN);
}

fn weight_lanes(first: u32, k: u32, n: u32, lane: u32) -> mat4x4<f32> {
  let i = (first + k) * params.n + n;
  if (W_EVEN) {
    let at = i / 2u + lane;
    let step = params.n / 2u;
    let at_1 = at + step;
    let at_2 = at_1 + step;
    let at_3 = at_2 + step;
    return mat4x4<f32>(
      vec4<f32>(pair(at), pair(at + 4u)),
      vec4<f32>(pair(at_1), pair(at_1 + 4u)),
      vec4<f32>(pair(at_2), pair(at_2 + 4u)),
      vec4<f32>(pair(at_3), pair(at_3 + 4u)),
    );
  }
  let at = i + lane;
  let at_1 = at + params.n;
  let at_2 = at_1 + params.n;
  let at_3 = at_2 + params.n;
  return mat4x4<f32>(
    weight(at), weight(at + 4u), weight(at + 8u), weight(at + 12u),
    weight(at_1), weight(at_1 + 4u), weight(at_1 + 8u), weight(at_1 + 12u),
    weight(at_2), weight(at_2 + 4u), weight(at_2 + 8u), weight(at_2 + 12u),
    weight(at_3), weight(at_3 + 4u), weight(at_3 + 8u), weight(at_3 + 12u),
  );
}
