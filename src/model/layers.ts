/**
 * Layers that checkpoints name: each reads its weights at the current path and reports its output there.
 * Images are [N,H,W,C] and token sequences [N,T,C] inside the engine; NCHW exists only at a model's borders.
 */
import { BruitError } from '../engine/errors';
import type { Graph, Tensor } from '../engine/graph';
import { conv2d } from '../engine/ops/conv2d';
import { embedding } from '../engine/ops/embedding';
import { groupNorm as groupNormOp } from '../engine/ops/group_norm';
import { layerNorm as layerNormOp } from '../engine/ops/layer_norm';
import { matmul } from '../engine/ops/matmul';
import { add, cast, pointwise, scale, shift, silu, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { showShape, type Shape } from '../engine/shape';
import type { LiveLora } from './lora';
import type { Init, Parameters } from './parameters';

/** What building a model needs besides its config. */
export interface ModelContext {
  readonly graph: Graph;
  readonly parameters: Parameters;
  /** Called with the output of every module under its checkpoint path (images NHWC): recorded activations, debugging. */
  readonly tap?: (path: string, value: Tensor) => void;
  /** True if `tap` wants the value at this path: keeps values apart that would be fused away. */
  readonly wantsTap?: (path: string) => boolean;
  /** Training-time dropout; absent in inference. */
  readonly dropout?: (x: Tensor, p: number) => Tensor;
  /** Storage type of activations and of the weights as kernels read them; f32 by default. Arithmetic and statistics are f32 either way. */
  readonly computeType?: 'f32' | 'f16';
  /** Computes every group norm in place of the op, which takes its statistics from `x` alone (tiled decoding). */
  readonly groupNorm?: (x: Tensor, gamma: Tensor, beta: Tensor, options: { readonly groups: number; readonly eps: number }) => Tensor;
  /** Recompute blocks in the backward pass instead of keeping their values. */
  readonly gradientCheckpointing?: boolean;
  /** Low-rank terms that are added to the layers which they name. */
  readonly loras?: readonly LiveLora[];
  /**
   * Asked for each value that does not depend on the image (see {@link hoistable}): may call `build`, or answer with a tensor that was
   * computed once outside the sampling loop.
   */
  readonly hoist?: (value: Hoistable, build: () => Tensor) => Tensor;
}

/** A value that the sampling loop need not compute anew for every image. */
export interface Hoistable {
  /** Path of the layer that computes it. */
  readonly path: string;
  /** `text`: depends on the conditioning alone (keys and values of cross-attention). `time`: on the time step, too (time projections). */
  readonly of: 'text' | 'time';
}

/** Fails unless an input has the wanted shape; letters stand for any size. `why` says where the numbers come from. */
export function checkInput(model: string, name: string, t: Tensor, wanted: readonly (number | string)[], why = ''): void {
  if (t.shape.length !== wanted.length || wanted.some((d, i) => typeof d === 'number' && d !== t.shape[i])) {
    throw new BruitError('shape', `${model}: ${name} ${showShape(t.shape)} must be [${wanted.join(', ')}]${why && ` (${why})`}`);
  }
}

/** Runs `build` under the path component `name` and reports its result there. */
export function module<T extends Tensor>(ctx: ModelContext, name: string, build: () => T): T {
  return ctx.graph.scope(name, () => {
    const y = build();
    ctx.tap?.(ctx.graph.path, y);
    return y;
  });
}

/**
 * The output of layer `name`, which depends on the text or on the time step alone. Samplers hoist it: one graph computes all such values and
 * keeps them as outputs, another takes them as inputs. Everything before them is dead code there, and its weights are not asked for.
 */
export function hoistable(ctx: ModelContext, name: string, of: Hoistable['of'], build: () => Tensor): Tensor {
  return ctx.hoist ? ctx.hoist({ path: weight(ctx, name), of }, build) : build();
}

/** Adds a model by `build`, which takes `hoist` into its context; returns those of its {@link hoistable} values by path. */
export function hoistables(of: Hoistable['of'], build: (hoist: NonNullable<ModelContext['hoist']>) => unknown): Map<string, Tensor> {
  const values = new Map<string, Tensor>();
  build((hoistable, compute) => {
    const value = compute();
    if (hoistable.of === of) values.set(hoistable.path, value);
    return value;
  });
  return values;
}

/** A block whose inner values may be recomputed in the backward pass. */
export const recomputable = <T>(ctx: ModelContext, build: () => T): T => (ctx.gradientCheckpointing ? ctx.graph.checkpoint(build) : build());

const weight = (ctx: ModelContext, name: string): string => (ctx.graph.path ? `${ctx.graph.path}.${name}` : name);

export interface ConvOptions {
  readonly kernel?: number;
  readonly stride?: number;
  /** Symmetric, or [top, bottom, left, right]; "same" for odd kernels by default. */
  readonly padding?: number | [number, number, number, number];
  readonly bias?: boolean;
  /** On x enlarged twice, nearest neighbour. */
  readonly upsample?: boolean;
}

/** torch.nn.Conv2d on [N,H,W,C]. */
export function conv(ctx: ModelContext, name: string, x: Tensor, out: number, options: ConvOptions = {}): Tensor {
  const { kernel = 3, stride = 1, padding = kernel % 2 ? (kernel - 1) / 2 : 0, bias = true, upsample = false } = options;
  return module(ctx, name, () => {
    const channels = x.shape[3]!;
    const init = { kind: 'fan_in', fanIn: channels * kernel * kernel } as const;
    const apply = (input: Tensor, w: Tensor, own: { stride: number; padding: typeof padding; upsample: boolean }): Tensor => conv2d(input, cast(w, x.dtype), own);
    const w = ctx.parameters.get(weight(ctx, 'weight'), [out, channels, kernel, kernel], 'conv', init);
    let y = apply(x, w, { stride, padding, upsample });
    if (bias) y = add(y, ctx.parameters.get(weight(ctx, 'bias'), [out], 'plain', init));
    // As diffusers has it: the first factor has the layer's kernel, the second is 1x1.
    for (const lora of ctx.loras ?? []) y = lora.add(ctx.graph, y, 'conv', [out, channels, kernel, kernel], (down, up) => apply(apply(x, down, { stride, padding, upsample }), up, { stride: 1, padding: 0, upsample: false }));
    return y;
  });
}

/** torch.nn.Linear on the last axis. */
export function linear(ctx: ModelContext, name: string, x: Tensor, out: number, { bias = true }: { bias?: boolean } = {}): Tensor {
  return module(ctx, name, () => {
    const channels = x.shape[x.shape.length - 1]!;
    const init = { kind: 'fan_in', fanIn: channels } as const;
    const apply = (input: Tensor, w: Tensor): Tensor => matmul(input, cast(w, x.dtype));
    let y = apply(x, ctx.parameters.get(weight(ctx, 'weight'), [out, channels], 'linear', init));
    if (bias) y = add(y, ctx.parameters.get(weight(ctx, 'bias'), [out], 'plain', init));
    for (const lora of ctx.loras ?? []) y = lora.add(ctx.graph, y, 'linear', [out, channels], (down, up) => apply(apply(x, down), up));
    return y;
  });
}

/** torch.nn.Embedding. `ids` i32 […] → […, width]. `lookUp` takes the place of the op that picks rows. */
export function embed(ctx: ModelContext, name: string, ids: Tensor, rows: number, width: number, { std = 1, lookUp = (table) => embedding(table, ids) }: { std?: number; lookUp?: (table: Tensor) => Tensor } = {}): Tensor {
  return module(ctx, name, () => lookUp(ctx.parameters.get(weight(ctx, 'weight'), [rows, width], 'table', { kind: 'normal', std })));
}

/** torch.nn.GroupNorm, with the activation after it where there is one. The reported output is before the activation, as in PyTorch. */
export function groupNorm(ctx: ModelContext, name: string, x: Tensor, options: { groups: number; eps: number; act?: PointwiseName }): Tensor {
  const { groups, eps, act } = options;
  const channels = x.shape[x.shape.length - 1]!;
  return ctx.graph.scope(name, () => {
    if (channels % groups !== 0) throw new BruitError('config', `group norm ${ctx.graph.path}: ${channels} channels do not divide into norm_num_groups = ${groups}`);
    const gamma = ctx.parameters.get(weight(ctx, 'weight'), [channels], 'plain', { kind: 'constant', value: 1 });
    const beta = ctx.parameters.get(weight(ctx, 'bias'), [channels], 'plain', { kind: 'constant', value: 0 });
    const fused = act === 'silu' && !ctx.groupNorm && !ctx.wantsTap?.(ctx.graph.path);
    const y = ctx.groupNorm ? ctx.groupNorm(x, gamma, beta, { groups, eps }) : groupNormOp(x, gamma, beta, { groups, eps, silu: fused });
    if (fused) return y;
    ctx.tap?.(ctx.graph.path, y);
    return act ? activation(y, act) : y;
  });
}

/** torch.nn.LayerNorm over the last axis; `affine` false is elementwise_affine=False. */
export function layerNorm(ctx: ModelContext, name: string, x: Tensor, { eps = 1e-5, affine = true }: { eps?: number; affine?: boolean } = {}): Tensor {
  return module(ctx, name, () => {
    if (!affine) return layerNormOp(x, undefined, undefined, { eps });
    const channels = x.shape[x.shape.length - 1]!;
    const gamma = ctx.parameters.get(weight(ctx, 'weight'), [channels], 'plain', { kind: 'constant', value: 1 });
    return layerNormOp(x, gamma, ctx.parameters.get(weight(ctx, 'bias'), [channels], 'plain', { kind: 'constant', value: 0 }), { eps });
  });
}

/** A weight of the module at the current path that is no layer's: positional embeddings and the like. */
export const ownWeight = (ctx: ModelContext, name: string, shape: Shape, init: Init): Tensor => ctx.parameters.get(weight(ctx, name), shape, 'plain', init);

/**
 * What is added to attention scores for a `mask` [N,M] of 1 (attend) and 0 (leave out): 0 and −3·10³⁸, as [N,1,1,M]. The lowest float32 itself
 * would overflow on top of another mask, and WGSL has no infinity.
 */
export const attentionBias = (mask: Tensor): Tensor => reshape(scale(shift(cast(mask, 'f32'), -1), 3e38), [mask.shape[0]!, 1, 1, mask.shape[1]!]);

export const activation = (x: Tensor, name: PointwiseName): Tensor => (name === 'silu' ? silu(x) : pointwise(name, [x]));

/** Activation by the name that configs give it. */
export function activationName(name: string, key = 'act_fn'): PointwiseName {
  const names: Record<string, PointwiseName> = { __proto__: null as never, silu: 'silu', swish: 'silu', mish: 'mish', gelu: 'gelu', relu: 'relu', quick_gelu: 'quick_gelu', gelu_new: 'gelu_tanh', gelu_pytorch_tanh: 'gelu_tanh' };
  const found = names[name];
  if (!found) throw new BruitError('config', `${key} "${name}" is unknown; known are ${Object.keys(names).join(', ')}`);
  return found;
}

export interface TimestepMlpOptions {
  /** Width of the hidden layer, and of the result unless `out` says otherwise. */
  readonly width: number;
  readonly out?: number;
  readonly act?: PointwiseName;
  /** Applied to the result. */
  readonly postAct?: PointwiseName | undefined;
  /** A second input [N, D] that is projected and added before the first layer (guidance distillation, Meng et al. 2023). */
  readonly condition?: Tensor | undefined;
  /** Width of that input in the checkpoint, given or not. */
  readonly conditionWidth?: number | null;
}

/** diffusers' TimestepEmbedding: linear, activation, linear. */
export function timestepMlp(ctx: ModelContext, name: string, x: Tensor, o: TimestepMlpOptions): Tensor {
  const { width, out = width, act = 'silu', postAct, condition, conditionWidth } = o;
  return module(ctx, name, () => {
    const channels = x.shape[x.shape.length - 1]!;
    if (conditionWidth && condition) x = add(x, linear(ctx, 'cond_proj', condition, channels, { bias: false }));
    // In the checkpoint also where nothing is given for it.
    else if (conditionWidth) ctx.parameters.get(weight(ctx, 'cond_proj.weight'), [channels, conditionWidth], 'linear', { kind: 'fan_in', fanIn: conditionWidth });
    const y = linear(ctx, 'linear_2', activation(linear(ctx, 'linear_1', x, width), act), out);
    return postAct ? activation(y, postAct) : y;
  });
}
