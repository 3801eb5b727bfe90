import gradShader from '../../../shaders/layer_norm_grad.wgsl';
import forwardShader from '../../../shaders/layer_norm.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type OpCase, type OpDef, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, sameShape, showShape, type DType, type Shape } from '../shape';
import { rowKernel } from './row_kernel';

export interface RowNormAttrs {
  readonly eps: number;
}

export interface RowNormGradAttrs extends RowNormAttrs {
  /** Whether dgamma and dbeta are wanted too. */
  readonly parameters: boolean;
}

const sizesOf = ({ shape }: TensorSpec) => {
  const channels = shape[shape.length - 1]!;
  return { channels, rows: numel(shape) / channels };
};

/** LayerNorm and RMSNorm differ in one subtraction, so they share kernels (shaders/layer_norm*.wgsl). */
export interface RowNorm {
  readonly op: OpDef<RowNormAttrs>;
  readonly gradOp: OpDef<RowNormGradAttrs>;
}

export function rowNorm({ name, doc, gradDoc, centered }: { name: string; doc: string; gradDoc: string; centered: boolean }): RowNorm {
  const gradOp = defineOp<RowNormGradAttrs>({
    name: `${name}_grad`,
    doc: gradDoc,
    infer([x, gamma, beta, dy], { parameters }) {
      check(sameShape(x!.shape, dy!.shape), 'shape', () => `dy ${showShape(dy!.shape)} must have x's shape ${showShape(x!.shape)}`);
      return (parameters ? [x!, gamma!, beta!] : [x!]).map(({ shape, dtype }) => ({ shape, dtype }));
    },
    variants: ['direct', 'tiled'],
    lower({ inputs, outputs, attrs: { eps }, profile, variant, temp, dispatch }) {
      const [x, gamma, beta, dy] = inputs as [Tensor, Tensor, Tensor, Tensor];
      const [dx, dgamma, dbeta] = outputs;
      const { rows, channels } = sizesOf(x);
      const width = channels % 4 === 0 ? 4 : 1;
      const type = (t: { dtype: DType }) => vectorType(t.dtype, width);
      const common = {
        shader: { file: 'layer_norm_grad.wgsl', text: gradShader },
        prologue: { V: vectorType('f32', width), X: type(x), DY: type(dy), DX: type(dx!), W: type(gamma), DW: gamma.dtype, DB: beta.dtype, WIDTH: `${width}u`, CENTERED: centered },
        includes: { 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` },
      };
      // Enough invocations for the device, each over at least 16 rows.
      const invocations = profile.kind === 'software' ? 2048 : 16384;
      const band = Math.min(rows, Math.max(16, Math.ceil((rows * channels) / width / invocations)));
      const bands = Math.ceil(rows / band);
      const params = { rows, channels, bands, band, eps };
      const mean = temp('row means', [rows]);
      const rstd = temp('row rstd', [rows]);
      dispatch({ ...common, bindings: { x, dy, gamma, dx: dx!, mean, rstd }, params, ...rowKernel(rows, channels, profile.kind, variant) });
      if (!dgamma || !dbeta) return;
      const bandDgamma = temp('dgamma of bands', [bands, channels]);
      const bandDbeta = temp('dbeta of bands', [bands, channels]);
      dispatch({
        ...common,
        entry: 'columns',
        bindings: { x, dy, row_mean: mean, row_rstd: rstd, band_dgamma: bandDgamma, band_dbeta: bandDbeta },
        params,
        workgroups: Math.ceil((bands * channels) / width / 64),
      });
      dispatch({ ...common, entry: 'merge', bindings: { part_dgamma: bandDgamma, part_dbeta: bandDbeta, dgamma, dbeta }, params, workgroups: Math.ceil(channels / 64) });
    },
    flops: ([x], _, { parameters }) => numel(x!.shape) * (parameters ? 20 : 15),
    grad: { notDifferentiable: 'gradients of gradients are not built' },
  });

  const op = defineOp<RowNormAttrs>({
    name,
    doc,
    infer([x, gamma, beta], { eps }) {
      const { channels } = sizesOf(x!);
      check(sameShape(gamma!.shape, [channels]) && sameShape(beta!.shape, [channels]), 'shape', () => `gamma ${showShape(gamma!.shape)} and beta ${showShape(beta!.shape)} must be [${channels}], the last axis of x ${showShape(x!.shape)}`);
      check(eps > 0, 'shape', () => `eps must be positive, not ${eps}`);
      return [{ shape: x!.shape, dtype: x!.dtype }];
    },
    variants: ['direct', 'tiled'],
    epilogueBuffers: 4,
    lower({ inputs, outputs, attrs: { eps }, profile, variant, dispatch }) {
      const [x, gamma, beta] = inputs as [Tensor, Tensor, Tensor];
      const { rows, channels } = sizesOf(x);
      const width = channels % 4 === 0 ? 4 : 1;
      const type = (t: Tensor) => vectorType(t.dtype, width);
      dispatch({
        shader: { file: 'layer_norm.wgsl', text: forwardShader },
        prologue: { V: vectorType('f32', width), X: type(x), W: type(gamma), B: type(beta), WIDTH: `${width}u`, CENTERED: centered },
        includes: { 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` },
        bindings: { x, gamma, beta, y: outputs[0]! },
        params: { rows, channels, eps },
        epilogueWidth: width,
        ...rowKernel(rows, channels, profile.kind, variant),
      });
    },
    flops: ([x]) => numel(x!.shape) * 8,
    grad({ graph, inputs, outputGrads, attrs: { eps }, needs }) {
      const [x, gamma, beta] = inputs as [Tensor, Tensor, Tensor];
      return graph.add(gradOp, [x, gamma, beta, outputGrads[0]!], { eps, parameters: needs[1]! || needs[2]! });
    },
  });
  return { op, gradOp };
}

const layer = rowNorm({
  name: 'layer_norm',
  doc: 'γ·(x − mean)/√(var + eps) + β over the last axis (Ba et al. 2016). x […,C], γ and β [C]. Statistics in f32, two passes.',
  gradDoc: '(dx, dgamma, dbeta), or (dx) alone, of layer_norm from (x, gamma, beta, dy): with x̂ = (x−mean)·rstd, dγ = Σ dy·x̂, dβ = Σ dy, dx = rstd·(γ·dy − mean(γ·dy) − x̂·mean(γ·dy·x̂)).',
  centered: true,
});
export const layerNormOp = layer.op;
export const layerNormGradOp = layer.gradOp;

/** γ = 1 or β = 0 for norms without one. */
export const constantVector = (x: Tensor, name: string, value: number): Tensor => {
  const { channels } = sizesOf(x);
  return x.graph.constant(name, [channels], new Float32Array(channels).fill(value));
};

/** LayerNorm over the last axis of `x` […,C]; `gamma` and `beta` [C] default to 1 and 0. */
export function layerNorm(x: Tensor, gamma?: Tensor, beta?: Tensor, { eps = 1e-5 }: { eps?: number } = {}): Tensor {
  return x.graph.add1(layerNormOp, [x, gamma ?? constantVector(x, 'ones', 1), beta ?? constantVector(x, 'zeros', 0)], { eps });
}

/** Tests of a norm over rows and of its gradient. */
export function rowNormTests({ op, gradOp }: RowNorm, centered: boolean): [OpTests<RowNormAttrs>, OpTests<RowNormGradAttrs>] {
  const normalise = (x: RefTensor, eps: number) => {
    const { channels } = sizesOf({ shape: x.shape, dtype: 'f32' });
    const xh = new Float64Array(x.data.length);
    const rstd = new Float64Array(x.data.length / channels);
    for (let r = 0; r < rstd.length; r++) {
      const row = x.data.subarray(r * channels, (r + 1) * channels);
      const mean = centered ? row.reduce((s, v) => s + v, 0) / channels : 0;
      rstd[r] = 1 / Math.sqrt(row.reduce((s, v) => s + (v - mean) ** 2, 0) / channels + eps);
      row.forEach((v, c) => (xh[r * channels + c] = (v - mean) * rstd[r]!));
    }
    return { xh, rstd, channels };
  };
  const vectors = (shape: Shape) => [{ shape: [shape[shape.length - 1]!] }, { shape: [shape[shape.length - 1]!] }];
  const forwardCase = (name: string, shape: Shape, more: Partial<OpCase<RowNormAttrs>> = {}): OpCase<RowNormAttrs> => ({ name, inputs: [{ shape }, ...vectors(shape)], attrs: { eps: 1e-5 }, tolerance: 1e-5, ...more });
  const gradCase = (name: string, shape: Shape, parameters: boolean, more: Partial<OpCase<RowNormGradAttrs>> = {}): OpCase<RowNormGradAttrs> => ({ name, inputs: [{ shape }, ...vectors(shape), { shape }], attrs: { eps: 1e-5, parameters }, tolerance: 1e-5, ...more });
  return [
    opTests<RowNormAttrs>({
      op,
      reference([x, gamma, beta], { eps }) {
        const { xh, channels } = normalise(x!, eps);
        return [xh.map((v, i) => v * gamma!.data[i % channels]! + beta!.data[i % channels]!)];
      },
      cases: [
        forwardCase('odd sizes', [3, 5, 37]),
        forwardCase('one row', [24]),
        forwardCase('one vector more than a workgroup', [17, 260]),
        forwardCase('long rows', [2, 4096], { skipGrad: true }),
        // The rounding of the mean to f32 alone moves x̂ by 2⁻²⁴·|mean|/std.
        forwardCase('mean a thousand deviations off zero', [5, 64], { inputs: [{ shape: [5, 64], fill: { mean: 1000, std: 1 } }, ...vectors([64])], tolerance: 1e-4, skipGrad: true }),
        forwardCase('DiT-S tokens', [4, 256, 384], { skipGrad: true, bench: true }),
        forwardCase('CLIP-L text', [2, 77, 768], { skipGrad: true, bench: true }),
      ],
    }),
    opTests<RowNormGradAttrs>({
      op: gradOp,
      reference([x, gamma, , dy], { eps, parameters }) {
        const { xh, rstd, channels } = normalise(x!, eps);
        const dx = new Float64Array(xh.length);
        const dgamma = new Float64Array(channels);
        const dbeta = new Float64Array(channels);
        rstd.forEach((scale, r) => {
          let first = 0;
          let second = 0;
          for (let c = 0; c < channels; c++) {
            const i = r * channels + c;
            dgamma[c]! += dy!.data[i]! * xh[i]!;
            dbeta[c]! += dy!.data[i]!;
            if (centered) first += (dy!.data[i]! * gamma!.data[c]!) / channels;
            second += (dy!.data[i]! * gamma!.data[c]! * xh[i]!) / channels;
          }
          for (let c = 0; c < channels; c++) {
            const i = r * channels + c;
            dx[i] = scale * (dy!.data[i]! * gamma!.data[c]! - first - xh[i]! * second);
          }
        });
        return parameters ? [dx, dgamma, dbeta] : [dx];
      },
      cases: [
        gradCase('odd sizes', [3, 5, 37], true),
        gradCase('dx alone', [2, 9, 12], false),
        gradCase('one row', [1, 24], true),
        gradCase('one vector more than a workgroup', [17, 260], true),
        gradCase('many bands', [4099, 5], true),
        gradCase('DiT-S tokens', [4, 256, 384], true, { bench: true }),
      ],
    }),
  ];
}

export const tests = rowNormTests(layer, true);
