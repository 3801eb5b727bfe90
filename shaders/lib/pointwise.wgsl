// Functions of the pointwise table (src/engine/ops/pointwise.ts) that are longer than an expression.
// V is f32 or vec4<f32>, set by the including shader's prologue.

// tanh(x) lowers to a quotient of exponentials on some drivers, NaN beyond |x| = 44; it is ±1 in f32 from |x| = 10 on.
fn tanh_safe(x: V) -> V {
  return tanh(clamp(x, V(-10.0), V(10.0)));
}

fn sigmoid(x: V) -> V {
  // exp overflows f32 beyond 88.
  return V(1.0) / (V(1.0) + exp(-clamp(x, V(-80.0), V(80.0))));
}

fn silu(x: V) -> V {
  return x * sigmoid(x);
}

fn silu_grad(x: V) -> V {
  let s = sigmoid(x);
  return s * (V(1.0) + x * (V(1.0) - s));
}

// erf to f32 precision: a Taylor series below 1, erfc's rational form (Abramowitz & Stegun 7.1.26 is only 1.5e-7 absolute,
// which x·Φ(x) magnifies in its tail) replaced by a continued polynomial in t = 1/(1 + x/2) (Numerical Recipes, erfcc, 1.2e-7 relative).
fn erf(x: V) -> V {
  let a = abs(x);
  let t = V(1.0) / (V(1.0) + V(0.5) * a);
  let p = V(-1.26551223) + t * (V(1.00002368) + t * (V(0.37409196) + t * (V(0.09678418) + t * (V(-0.18628806) + t * (V(0.27886807)
    + t * (V(-1.13520398) + t * (V(1.48851587) + t * (V(-0.82215223) + t * V(0.17087277)))))))));
  let far = V(1.0) - t * exp(clamp(p - a * a, V(-80.0), V(0.0)));
  let s = x * x;
  let near = x * V(1.1283791671) * (V(1.0) + s * (V(-0.3333333333) + s * (V(0.1) + s * (V(-0.0238095238) + s * (V(0.00462962963)
    + s * (V(-0.000757575758) + s * (V(0.000106837607) + s * (V(-0.0000132275132) + s * V(0.00000145891690)))))))));
  return select(far * sign(x), near, a < V(0.8));
}

fn gelu(x: V) -> V {
  return V(0.5) * x * (V(1.0) + erf(x * V(0.7071067812)));
}

fn gelu_grad(x: V) -> V {
  return V(0.5) * (V(1.0) + erf(x * V(0.7071067812))) + x * V(0.3989422804) * exp(clamp(V(-0.5) * x * x, V(-80.0), V(0.0)));
}

fn gelu_tanh(x: V) -> V {
  return V(0.5) * x * (V(1.0) + tanh_safe(V(0.7978845608) * (x + V(0.044715) * x * x * x)));
}

fn gelu_tanh_grad(x: V) -> V {
  let t = tanh_safe(V(0.7978845608) * (x + V(0.044715) * x * x * x));
  return V(0.5) * (V(1.0) + t) + V(0.5) * x * (V(1.0) - t * t) * V(0.7978845608) * (V(1.0) + V(0.134145) * x * x);
}

// sin and cos to f32 rounding for |x| up to about 10^4: WGSL promises 2^-11 within ±π and nothing beyond.
// x - kπ in three parts (Cody & Waite), then the Taylor polynomial on ±π/2.
fn sin_exact(x: V) -> V {
  let k = round(x * V(0.31830988618));
  let r = ((x - k * V(3.140625)) - k * V(0.000967502593994)) - k * V(0.00000015099579910);
  let s = r * r;
  let p = r + r * s * (V(-0.16666666667) + s * (V(0.0083333333333) + s * (V(-0.00019841269841) + s * (V(0.0000027557319224)
    + s * (V(-0.000000025052108385) + s * V(0.00000000016059043837))))));
  return select(p, -p, k - V(2.0) * floor(k * V(0.5)) > V(0.5));
}

fn cos_exact(x: V) -> V {
  // cos x = ±sin(x - (k + 1/2)π), so that no rounded π/2 is added to x.
  let k = round(x * V(0.31830988618) - V(0.5));
  let h = k + V(0.5);
  let r = ((x - h * V(3.140625)) - h * V(0.000967502593994)) - h * V(0.00000015099579910);
  let s = r * r;
  let p = r + r * s * (V(-0.16666666667) + s * (V(0.0083333333333) + s * (V(-0.00019841269841) + s * (V(0.0000027557319224)
    + s * (V(-0.000000025052108385) + s * V(0.00000000016059043837))))));
  return select(-p, p, k - V(2.0) * floor(k * V(0.5)) > V(0.5));
}
