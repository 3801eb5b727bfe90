// Adds the outer product of w and x: column j grows by w·x[j]. Explicit fma: of `c += w * x`, software adapters make two instructions.
fn add_outer(c: mat4x4<f32>, w: vec4<f32>, x: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(fma(w, vec4<f32>(x.x), c[0]), fma(w, vec4<f32>(x.y), c[1]), fma(w, vec4<f32>(x.z), c[2]), fma(w, vec4<f32>(x.w), c[3]));
}
