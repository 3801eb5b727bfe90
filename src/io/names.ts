/** Names of weights that changed between versions of diffusers. */

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
