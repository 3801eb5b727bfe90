// What attention's gradient kernels read besides the operands (lib/attention.wgsl): dL/do and the statistics of each query row.
@group(0) @binding(5) var<storage, read> dout: array<X>;
@group(0) @binding(6) var<storage, read> stats: array<vec2<f32>>; // [B,heads,T]: lse·log2(e), δ (attention_stats.wgsl)

fn read_dout(i: u32, d: u32) -> vec4<f32> {
  if (WIDE) {
    return vec4<f32>(X4(dout[i / 4u + d]));
  }
  let at = i + 4u * d;
  return cut(vec4<f32>(vec4<f32>(X4(dout[at])).x, vec4<f32>(X4(dout[at + 1u])).x, vec4<f32>(X4(dout[at + 2u])).x, vec4<f32>(X4(dout[at + 3u])).x), d);
}

fn stats_at(b: u32, h: u32, t: u32) -> vec2<f32> {
  return stats[(b * params.heads + h) * params.t + min(t, params.t - 1u)];
}
