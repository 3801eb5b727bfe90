// V = vec4<f32>: four neighbouring channels per invocation. Same functions as lib/lanes_1.wgsl.
fn lanes(a: f32, b: f32, c: f32, d: f32) -> V {
  return V(a, b, c, d);
}

fn lane_sum(v: V) -> f32 {
  return (v.x + v.y) + (v.z + v.w);
}

fn lane_max(v: V) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}
