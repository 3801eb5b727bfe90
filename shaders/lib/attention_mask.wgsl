// The additive mask of attention. Below -1e38 there is nothing: a factor log2(e) has to fit.
@group(0) @binding(4) var<storage, read> mask: array<MASK>;

fn mask_bias(b: u32, h: u32, t: vec4<u32>, j: vec4<u32>) -> vec4<f32> {
  let at = b * params.mask_b + h * params.mask_h + t * params.mask_t + j * params.mask_m;
  return max(vec4<f32>(f32(mask[at.x]), f32(mask[at.y]), f32(mask[at.z]), f32(mask[at.w])), vec4<f32>(-1.0e38)) * LOG2E;
}
