// V = f32: one channel per invocation. Same functions as lib/lanes_4.wgsl.
fn lanes(a: f32, b: f32, c: f32, d: f32) -> V {
  return a;
}

fn lane_sum(v: V) -> f32 {
  return v;
}

fn lane_max(v: V) -> f32 {
  return v;
}
