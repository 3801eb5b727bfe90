/** Training of little beside a model whose own weights stay: low-rank factors (Hu et al. 2021), or the embeddings of a new word (Gal et al. 2022). */
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { embedding } from '../engine/ops/embedding';
import { cast, less, shift, where } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import type { ModelContext } from '../model/layers';
import { LiveLora, type Lora } from '../model/lora';
import { Parameters } from '../model/parameters';
import { padTokens, wrapTokens, type Tokenizer } from '../text/tokenizer';
import type { LoraRecipe, TextualInversionRecipe } from './config';

/** Prefix of an adapter's parameters among those of a step. */
export const loraPrefix = 'lora.';
/** Name of the new word's embeddings [vectors, hidden_size]. */
export const learnedEmbeds = 'textual_inversion.weight';

const attentionLayer = /\.(to_q|to_k|to_v|to_out\.0)$/;

/** Adds the model that `build` makes with a new adapter, whose factors become parameters of the step. */
export function withLora(ctx: ModelContext, { rank, target }: LoraRecipe, build: (ctx: ModelContext, of: Graph) => Tensor): Tensor {
  // The layers are known once the model has been built.
  const declared = new Parameters(new Graph());
  build({ graph: declared.graph, parameters: declared }, declared.graph);
  const layers = [...declared.specs.values()].filter((s) => s.layout !== 'plain' && s.name.endsWith('.weight')).map((s) => s.name.slice(0, -'.weight'.length));
  const chosen = target === 'all' ? layers : layers.filter((path) => attentionLayer.test(path));
  if (chosen.length === 0) throw new BruitError('config', `lora: the model has no layer that lora_target "${target}" means`);
  const lora: Lora = { name: 'adapter', modules: new Map(chosen.map((path) => [path, { rank, alpha: rank }])) };
  const live = new LiveLora(ctx.graph, lora);
  const y = build({ ...ctx, loras: [live] }, ctx.graph);
  live.assertUsed();
  for (const [name, spec] of live.parameters.specs) {
    const own = `${loraPrefix}${name}`;
    const { parameters } = ctx;
    // As another parameter of the step: its memory, gradient and moments.
    parameters.specs.set(own, { ...spec, name: own });
    parameters.tensors.set(own, live.parameters.tensors.get(name)!);
  }
  return y;
}

/** Name of a factor in diffusers' files (`save_lora_weights`): `unet.mid_block.attentions.0.….to_q.lora.down.weight`. */
export const loraFileName = (folder: string, name: string): string => `${folder}.${name.slice(loraPrefix.length).replace(/\.lora_A\.weight$/, '.lora.down.weight').replace(/\.lora_B\.weight$/, '.lora.up.weight')}`;

/** The parameter of a step that {@link loraFileName} names. */
export const loraParameterName = (folder: string, inFile: string): string => `${loraPrefix}${inFile.slice(folder.length + 1).replace(/\.lora\.down\.weight$/, '.lora_A.weight').replace(/\.lora\.up\.weight$/, '.lora_B.weight')}`;

/** Embeddings of tokens where ids from the table's length on are those of the new word. */
export const embedWithNewWord =
  (ctx: ModelContext, inputIds: Tensor, { vectors }: TextualInversionRecipe) =>
  (table: Tensor): Tensor => {
    const [rows, width] = table.shape as [number, number];
    const [n, t] = inputIds.shape as [number, number];
    const learned = ctx.parameters.get(learnedEmbeds, [vectors, width], 'plain', { kind: 'constant', value: 0 });
    const ids = cast(inputIds, 'f32');
    const isNew = less(ctx.graph.constant('last_known_token', [1], Float32Array.of(rows - 0.5)), ids);
    // Ids beyond a table read its nearest row, which the other table's replaces.
    return where(reshape(isNew, [n, t, 1]), embedding(learned, cast(shift(ids, -rows), 'i32')), embedding(table, inputIds));
  };

/** A tokenizer that knows one word more: `vectors` tokens from `firstId` on. */
export function extendTokenizer(tokenizer: Tokenizer, { placeholder, vectors }: TextualInversionRecipe, firstId: number): Tokenizer {
  if (tokenizer.encode(placeholder).length === 1) throw new BruitError('config', `placeholder_token "${placeholder}" is a word that the tokenizer knows; choose one that it does not know`);
  const added = Array.from({ length: vectors }, (_, i) => firstId + i);
  const encode = (text: string): number[] => text.split(placeholder).flatMap((part, i) => [...(i > 0 ? added : []), ...(part.trim() ? tokenizer.encode(part) : [])]);
  return {
    ...tokenizer,
    encode,
    batch: (texts, length = tokenizer.modelMaxLength) => padTokens(texts.map((text) => wrapTokens(encode(text), tokenizer, length)), tokenizer.padTokenId, length),
  };
}
