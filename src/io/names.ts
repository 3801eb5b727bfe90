/** Names of weights that changed between versions of diffusers and transformers. */

const DEPRECATED_ATTENTION: Record<string, string> = { query: 'to_q', key: 'to_k', value: 'to_v', proj_attn: 'to_out.0' };

/**
 * Gives a weight of an old checkpoint the name that diffusers uses now; any other name comes back unchanged.
 * Early `AttentionBlock`s (2-D U-Nets, VAEs) called their linear layers query, key, value and proj_attn; diffusers renames
 * exactly these on loading (`ModelMixin._convert_deprecated_attention_blocks`), shapes untouched. Such blocks always stand in an `attentions` list,
 * which keeps apart modules of other models that happen to hold a `query` or a `key`.
 */
export function renameDeprecatedAttention(name: string): string {
  return name.replace(/(?<=(?:^|\.)attentions\.\d+\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)/, (old) => DEPRECATED_ATTENTION[old]!);
}

/** Constants that older versions of transformers saved among the weights. */
const CONSTANT = /(^|\.)embeddings\.position_ids$/;

/** The name that diffusers and transformers give a tensor of a checkpoint now, or null for what is no weight. */
export const currentName = (nameInFile: string): string | null => (CONSTANT.test(nameInFile) ? null : renameDeprecatedAttention(nameInFile));

/** Second names under which a weight may be stored, beside the first or instead of it. */
export const TIED_NAMES: Readonly<Record<string, string>> = { 'encoder.embed_tokens.weight': 'shared.weight', 'time_proj.W': 'time_proj.weight' };
