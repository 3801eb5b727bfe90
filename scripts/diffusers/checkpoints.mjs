// Trains a checkpoint of every kind that bruit writes for a few steps, samples from it, and lets diffusers load and run the same:
//   node scripts/diffusers/checkpoints.mjs [--python PYTHON] [--adapter KIND] [--out DIR]
// PYTHON has torch, diffusers, transformers, peft and safetensors. Not part of npm test.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const root = resolve(import.meta.dirname, '../..');
const { python, adapter, out } = parseArgs({ options: { python: { type: 'string', default: 'python3' }, adapter: { type: 'string', default: 'auto' }, out: { type: 'string', default: join(root, 'out', 'diffusers') } } }).values;
mkdirSync(out, { recursive: true });

const run = (command, args) => {
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${status}`);
};
const bruit = (...args) => run(process.execPath, ['bin/bruit.mjs', ...args, '--adapter', adapter]);
const at = (...parts) => join(out, ...parts);

/** Trains a recipe, unless that was done before; gives the last checkpoint. */
function trained(name, recipe) {
  const folder = at(name);
  if (!existsSync(folder)) {
    writeFileSync(at(`${name}.json`), JSON.stringify(recipe, null, 2));
    bruit('train', at(`${name}.json`), '--out', folder);
  }
  return join(folder, readdirSync(folder).filter((entry) => entry.startsWith('checkpoint-')).sort().at(-1));
}

function exported(name, checkpoint) {
  bruit('export', checkpoint, '--out', at(`${name}-model`), '--overwrite');
  return at(`${name}-model`);
}

/** The same images by bruit and by diffusers. */
function same(folder, { sample, load }) {
  const file = `${folder}.safetensors`;
  bruit('sample', '--model', folder, '--out', file, '--overwrite', '--steps', '3', '--seed', '5', '--rng', 'torch-cpu', ...sample);
  run(python, ['scripts/diffusers/load.py', folder, file, '--steps', '3', '--seed', '5', ...load]);
}

const train = { steps: 4, batch_size: 2, learning_rate: 0.03, checkpoint_every: 4, ema_decay: 0.5 };
const scenes = { source: 'scenes', count: 40, size: 32 };
const ddim = { _class_name: 'DDIMScheduler', prediction_type: 'v_prediction', timestep_spacing: 'trailing', clip_sample: false };
const blocks = (name, n) => Array.from({ length: n }, () => name);

const vaeRun = trained('vae', {
  model: { _class_name: 'AutoencoderKL', in_channels: 1, out_channels: 1, down_block_types: blocks('DownEncoderBlock2D', 4), up_block_types: blocks('UpDecoderBlock2D', 4), block_out_channels: [4, 8, 8, 8], layers_per_block: 1, latent_channels: 4, norm_num_groups: 2, sample_size: 32 },
  data: scenes,
  train,
});
const vae = join(vaeRun, 'vae_ema');

const pixels = exported('ddpm', trained('ddpm', {
  model: { _class_name: 'UNet2DModel', sample_size: 28, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D', 'AttnDownBlock2D'], up_block_types: ['AttnUpBlock2D', 'UpBlock2D'], block_out_channels: [8, 16], layers_per_block: 1, norm_num_groups: 4, attention_head_dim: 8 },
  scheduler: { _class_name: 'DDPMScheduler' },
  data: { source: 'mnist' },
  train,
}));
same(pixels, { sample: ['--n', '1'], load: [] });

const text = exported('text', trained('text', {
  model: { _class_name: 'UNet2DConditionModel', sample_size: 4, in_channels: 4, out_channels: 4, down_block_types: ['DownBlock2D', 'CrossAttnDownBlock2D'], up_block_types: ['CrossAttnUpBlock2D', 'UpBlock2D'], block_out_channels: [8, 16], layers_per_block: 1, attention_head_dim: 2, cross_attention_dim: 16, norm_num_groups: 2 },
  text_encoder: { vocab_size: 623, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 16, eos_token_id: 622 },
  tokenizer: 'recipes/scenes/tokenizer',
  vae,
  scheduler: ddim,
  data: scenes,
  train: { ...train, train_text_encoder: true, condition_dropout: 0.2 },
}));
const prompt = ['--prompt', 'two threes side by side'];
same(text, { sample: prompt, load: prompt });

const lora = join(trained('lora', { pipeline: text, data: scenes, train: { ...train, method: 'lora', lora_rank: 2, lora_target: 'all' } }), 'pytorch_lora_weights.safetensors');
same(text, { sample: [...prompt, '--lora', lora], load: [...prompt, '--lora', lora] });

// Pictures whose captions hold the new word.
const pictures = at('pictures');
bruit('sample', '--model', text, '--out', pictures, '--overwrite', '--n', '4', '--steps', '2', ...prompt);
writeFileSync(join(pictures, 'metadata.jsonl'), readdirSync(pictures).filter((file) => file.endsWith('.png')).map((file) => `${JSON.stringify({ file_name: file, text: 'a <one>' })}\n`).join(''));
const inversion = { method: 'textual_inversion', placeholder_token: '<one>', initializer_token: 'three', num_vectors: 2 };
const embeds = join(trained('inversion', { pipeline: text, data: { source: 'captions', path: pictures, size: 32 }, train: { ...train, ...inversion } }), 'learned_embeds.safetensors');
same(text, { sample: prompt, load: [...prompt, '--embeds', embeds] });

const dit = exported('dit', trained('dit', {
  model: { _class_name: 'Transformer2DModel', num_attention_heads: 2, attention_head_dim: 8, in_channels: 4, out_channels: 8, num_layers: 2, sample_size: 4, patch_size: 2, norm_type: 'ada_norm_zero', num_embeds_ada_norm: 1000, norm_elementwise_affine: false, activation_fn: 'gelu-approximate', attention_bias: true },
  vae,
  scheduler: { _class_name: 'DDIMScheduler', clip_sample: false },
  data: { source: 'mnist', size: 32 },
  train: { ...train, condition_dropout: 0.1 },
}));
same(dit, { sample: ['--labels', '3,8'], load: ['--labels', '3', '8'] });
