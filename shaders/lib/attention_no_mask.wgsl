// Attention without an additive mask.
fn mask_bias(b: u32, h: u32, t: vec4<u32>, j: vec4<u32>) -> vec4<f32> {
  return vec4<f32>();
}
