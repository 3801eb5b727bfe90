/** The names that LoRA files give to their tensors: diffusers' (two generations), PEFT's and kohya's. */

export type LoraFactor = 'down' | 'up';

export type ParsedLoraName =
  | { readonly path: string; readonly part: LoraFactor | 'alpha' }
  /** The tensor belongs to another model of the pipeline. */
  | 'other component'
  | { readonly reason: string };

/** Prefixes of kohya's names by the folder of the model. */
const kohyaPrefixes: Readonly<Record<string, readonly string[]>> = { unet: ['lora_unet_'], text_encoder: ['lora_te_', 'lora_te1_'], text_encoder_2: ['lora_te2_'] };

/** Ends of a name, after the layer's path; `to_q_lora` and its kin belong to diffusers' attention processors. */
const ends: readonly (readonly [RegExp, LoraFactor | 'alpha'])[] = [
  [/(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight$|\.lora_down\.weight$|\.lora_A(?:\.\w+)?\.weight$/, 'down'],
  [/(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight$|\.lora_up\.weight$|\.lora_B(?:\.\w+)?\.weight$/, 'up'],
  [/(?:\.lora|\.lora_linear_layer|_lora)?\.alpha$/, 'alpha'],
];

/**
 * Tells what a tensor of a LoRA file is for, seen from one model.
 * @param component Folder of the model in its pipeline (`unet`, `text_encoder`, …).
 * @param layers Paths of the model's layers.
 * @param layersPerBlock Of the U-Net, for kohya's names after the original code's blocks.
 */
export function loraNameParser(component: string, layers: Iterable<string>, layersPerBlock: number): (name: string) => ParsedLoraName {
  const known = new Set(layers);
  // kohya writes dots as underscores, which only the model's own names can undo.
  const byUnderscores = new Map([...known].map((path) => [path.replaceAll('.', '_'), path]));
  const endOf = (name: string) => ends.map(([pattern, part]) => ({ part, at: pattern.exec(name)?.index })).find(({ at }) => at !== undefined);
  return (name) => {
    const kohya = /^lora_(unet|te|te1|te2)_/.exec(name)?.[0];
    if (kohya && !kohyaPrefixes[component]?.includes(kohya)) return 'other component';
    // Files of one model alone have no prefix; those of a pipeline name its folders.
    const prefix = kohya ?? /^(?:base_model\.model\.)?(?:(?:unet|text_encoder(?:_\d+)?|prior|transformer)\.)?/.exec(name)![0];
    const folder = prefix.replace('base_model.model.', '').slice(0, -1);
    if (!kohya && folder && folder !== component) return 'other component';
    const own = name.slice(prefix.length);
    const end = endOf(own);
    if (!end) return { reason: /hada_|lokr_|dora_scale|lora_mid|\.diff/.test(own) ? 'LoHa, LoKr, DoRA, three-factor and full-difference adapters are not supported' : 'not a name of any LoRA format that is known' };
    const stem = own.slice(0, end.at);
    const path = kohya ? byUnderscores.get(originalToDiffusers(stem, layersPerBlock)) : dottedPath(stem, known);
    return path === undefined ? { reason: 'the model has no such layer' } : { path, part: end.part };
  };
}

/** The layer that a dotted path means: attention processors call the layers of CLIP's attention by the U-Net's names. */
function dottedPath(stem: string, known: ReadonlySet<string>): string | undefined {
  const plain = stem.replace('.processor', '');
  const clip: Readonly<Record<string, string>> = { to_q: 'q_proj', to_k: 'k_proj', to_v: 'v_proj', to_out: 'out_proj' };
  const candidates = [plain, plain.replace(/\.to_out$/, '.to_out.0'), plain.replace(/\.(to_q|to_k|to_v|to_out)$/, (_, layer: string) => `.${clip[layer]}`)];
  return candidates.find((path) => known.has(path));
}

/** Residual blocks of the original code, by their position in an nn.Sequential. */
const originalLayers: Readonly<Record<string, string>> = { in_layers_0: 'norm1', in_layers_2: 'conv1', emb_layers_1: 'time_emb_proj', out_layers_0: 'norm2', out_layers_3: 'conv2', skip_connection: 'conv_shortcut' };
const originalOutside: Readonly<Record<string, string>> = {
  time_embed_0: 'time_embedding_linear_1',
  time_embed_2: 'time_embedding_linear_2',
  label_emb_0_0: 'add_embedding_linear_1',
  label_emb_0_2: 'add_embedding_linear_2',
  input_blocks_0_0: 'conv_in',
  out_0: 'conv_norm_out',
  out_2: 'conv_out',
};

/** `input_blocks_4_1_…` of the original latent diffusion code (as kohya writes SDXL) to `down_blocks_1_attentions_0_…`; other names stay. */
function originalToDiffusers(flat: string, layersPerBlock: number): string {
  const outside = originalOutside[flat];
  if (outside) return outside;
  const match = /^(input_blocks|output_blocks)_(\d+)_(\d+)_(.+)$|^(middle_block)_(\d+)_(.+)$/.exec(flat);
  if (!match) return flat;
  const inner = (rest: string): string => originalLayers[rest] ?? rest;
  if (match[5]) return `mid_block_${match[6] === '1' ? 'attentions_0' : `resnets_${Number(match[6]) / 2}`}_${inner(match[7]!)}`;
  const [, kind, at, part, rest] = match as unknown as [string, string, string, string, string];
  const input = kind === 'input_blocks';
  const index = Number(at) - (input ? 1 : 0);
  const block = `${input ? 'down' : 'up'}_blocks_${Math.floor(index / (layersPerBlock + 1))}`;
  const layer = index % (layersPerBlock + 1);
  if (input && rest === 'op') return `${block}_downsamplers_0_conv`;
  if (!input && rest === 'conv') return `${block}_upsamplers_0_conv`;
  return `${block}_${part === '0' ? 'resnets' : 'attentions'}_${layer}_${inner(rest)}`;
}
