// A matrix or table of plain elements (f32 or f16), read by one or by four.
// prologue
alias W = vec4<f32>;
alias W4 = vec4<f32>;
const W_WIDE = true; // rows are divisible by 4, and W is a vec4
// end prologue

@group(0) @binding(2) var<storage, read> w: array<W>;

// W4(…) takes a scalar or a vec4 of W's type alike: the branch not taken must still compile.
fn weight(i: u32) -> f32 {
  return vec4<f32>(W4(w[i])).x;
}

// Four neighbours in memory; of a table, four neighbours in a row.
fn table(i: u32) -> vec4<f32> {
  if (W_WIDE) {
    return vec4<f32>(W4(w[i / 4u]));
  }
  return vec4<f32>(weight(i), weight(i + 1u), weight(i + 2u), weight(i + 3u));
}
