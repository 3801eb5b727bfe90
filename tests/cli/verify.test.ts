import { existsSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openTensorFile } from '../../src/node/file_source';
import { goldenJson, goldenPath, loadGolden } from '../helpers/golden';
import { modelCases } from '../helpers/golden_cases';
import { bruit, copyOfCase, perturb, temporary } from './bruit';

interface Tensor {
  file: string;
  name: string;
  verdict: string;
  max_abs_difference: number;
  /** Set where the difference is that of one sample. */
  sample?: number;
}

/** What a case's inputs are, which no check recomputes, and what it cannot recompute. */
const inputs = /^(\w+\.)?(sample|timestep|class_labels|x0|noise|t|model_output|input_ids|attention_mask|pixel_values|image|latent|encoder_hidden_states|encoder_attention_mask|timestep_cond|hidden_states|proj_embedding)$|\.noise$/;
const cases: Record<string, { files: string[]; impossible: RegExp; given?: RegExp }> = {
  ...Object.fromEntries(modelCases.map((name) => [name, { files: ['io.safetensors'], impossible: /^$/ }])),
  unet2d_cifar_tiny: { files: ['io.safetensors', 'train.safetensors'], impossible: /^$/ },
  half_weights: { files: ['io.safetensors'], impossible: /^output_fp32_weights$/ },
  unet2d_condition_if_tiny: { files: ['io.safetensors'], impossible: /^$/ },
  // CLIP's cases have such outputs.
  unet2d_condition_kinds_tiny: { files: ['io.safetensors'], impossible: /^$/, given: new RegExp(`${inputs.source}|^(image|text)_embeds$`) },
  dit_tiny: { files: ['io.safetensors'], impossible: /^$/ },
  prior_transformer_tiny: { files: ['io.safetensors'], impossible: /^$/ },
  train_unet2d_condition: { files: ['io.safetensors'], impossible: /^$/ },
  train_unet2d_condition_k: { files: ['io.safetensors'], impossible: /^$/ },
  train_unet2d_vpred: { files: ['io.safetensors'], impossible: /weight_snr_plus_one_inside$/ },
  hybrid_loss: { files: ['io.safetensors'], impossible: /^$/ },
  schedulers: { files: ['io.safetensors'], impossible: /^$/ },
  pipeline_sd_inpaint9_tiny: { files: ['runs/inpaint9_ddim.safetensors', 'runs/inpaint9_pndm.safetensors'], impossible: /^$/, given: /^(in|draw)\./ },
  torch_random: { files: ['io.safetensors'], impossible: /^$/ },
};

describe('reference cases', () => {
  test.each(Object.entries(cases))('%s: every record is recomputed, agrees, and is written', async (name, { files, impossible, given = inputs }) => {
    const out = join(await temporary(), 'out');
    const { code, stdout, stderr } = await bruit('verify', goldenPath(name), '--out', out, '--json');
    expect(stderr).toBe('');
    const result = JSON.parse(stdout) as { ok: boolean; first_divergence: string | null; tensors: Tensor[]; not_recomputed: Tensor[] };
    expect({ code, ok: result.ok, first: result.first_divergence }).toEqual({ code: 0, ok: true, first: null });
    for (const file of files) {
      const golden = loadGolden(name, file);
      const wanted = [...golden.keys()].filter((key) => !given.test(key) && !impossible.test(key)).sort();
      expect(result.tensors.filter((t) => t.file === file).map((t) => t.name).sort()).toEqual(wanted);
      expect(result.not_recomputed.filter((t) => t.file === file).map((t) => t.name).every((key) => impossible.test(key))).toBe(true);
      const written = await openTensorFile(join(out, file));
      expect([...written.tensors.keys()].sort()).toEqual(wanted);
      for (const [key, { shape }] of written.tensors) {
        const { data, ...expected } = golden.get(key)!;
        expect(shape, key).toEqual(expected.shape);
        const { sample, max_abs_difference } = result.tensors.find((t) => t.name === key && t.file === file)!;
        const size = sample === undefined ? data.length : data.length / shape[0]!;
        const [from, to] = [(sample ?? 0) * size, ((sample ?? 0) + 1) * size];
        const actual = (await written.readF32(key)).subarray(from, to);
        const difference = data.subarray(from, to).reduce((worst, v, i) => Math.max(worst, Math.abs(v - actual[i]!)), 0);
        expect(Math.abs(difference - max_abs_difference), key).toBeLessThanOrEqual(1e-6 * max_abs_difference);
      }
      await written.close();
    }
  });

  test('learning_rates: numbers in JSON', async () => {
    const out = join(await temporary(), 'out');
    expect((await bruit('verify', goldenPath('learning_rates'), '--out', out)).code).toBe(0);
    const { values } = JSON.parse(await readFile(join(out, 'case.json'), 'utf8')) as { values: Record<string, number[]> };
    const golden = goldenJson<{ values: Record<string, number[]> }>('learning_rates', 'case.json').values;
    expect(Object.keys(values)).toEqual(Object.keys(golden));
    for (const [name, rates] of Object.entries(golden)) rates.forEach((rate, i) => expect(values[name]![i]).toBeCloseTo(rate, 16));
  });

  test('frechet and tokenizers: numbers in JSON, at their places', async () => {
    const [frechet, tokenizers] = [join(await temporary(), 'frechet'), join(await temporary(), 'tokenizers')];
    expect(await bruit('verify', goldenPath('frechet'), '--out', frechet)).toMatchObject({ code: 0, stderr: '' });
    const { cases: written } = JSON.parse(await readFile(join(frechet, 'case.json'), 'utf8')) as { cases: Record<string, { frechet_distance: number; cov_a: number[][] }> };
    const { cases } = goldenJson<{ cases: typeof written }>('frechet', 'case.json');
    expect(Object.keys(written)).toEqual(Object.keys(cases));
    for (const [name, c] of Object.entries(cases)) {
      expect(written[name]!.frechet_distance / c.frechet_distance).toBeCloseTo(1, 6);
      expect(written[name]!.cov_a.map((row) => row.length)).toEqual(c.cov_a.map((row) => row.length));
      expect(written[name]!.cov_a[1]![0]).toBeCloseTo(c.cov_a[1]![0]!, 12);
    }
    const verified = await bruit('verify', goldenPath('tokenizers'), '--out', tokenizers);
    expect(verified).toMatchObject({ code: 0, stderr: '' });
    const texts = goldenJson<Record<string, { input_ids: number[] }[]>>('tokenizers', 'case.json');
    const ids = JSON.parse(await readFile(join(tokenizers, 'case.json'), 'utf8')) as typeof texts;
    for (const name of ['clip', 't5']) expect(ids[name]!.map((t) => t.input_ids)).toEqual(texts[name]!.map((t) => t.input_ids));
  });
});

describe('misses', () => {
  test('a wrong weight is found at the first layer behind it', async () => {
    const path = await copyOfCase('unet2d_class_cond');
    await perturb(join(path, 'diffusion_pytorch_model.safetensors'), 'mid_block.resnets.0.conv1.weight', 1);
    const { code, stdout } = await bruit('verify', path);
    expect(code).toBe(1);
    expect(stdout).toMatch(/^act\.down_blocks\.1\.resnets\.0 .* ok$/m);
    expect(stdout).toMatch(/^act\.mid_block .* MISS$/m);
    expect(stdout).toMatch(/^output .* MISS$/m);
    expect(stdout).toContain('The first to diverge is mid_block:');
  });

  test('a wrong record alone is a miss too', async () => {
    const path = await copyOfCase('unet2d_old_names');
    await perturb(join(path, 'io.safetensors'), 'act.up_blocks.0', 0.01);
    const { code, stdout } = await bruit('verify', path, '--json');
    expect(code).toBe(1);
    const result = JSON.parse(stdout) as { first_divergence: string; tensors: Tensor[] };
    expect(result.first_divergence).toBe('up_blocks.0');
    expect(result.tensors.filter((t) => t.verdict === 'miss').map((t) => t.name)).toEqual(['act.up_blocks.0']);
  });

  test('a learning rate off by a millionth', async () => {
    const path = await copyOfCase('learning_rates');
    const json = goldenJson<{ values: { cosine: number[] } }>('learning_rates', 'case.json');
    json.values.cosine[50]! *= 1 + 1e-6;
    await writeFile(join(path, 'case.json'), JSON.stringify(json));
    expect(await bruit('verify', path)).toMatchObject({ code: 1, stdout: expect.stringContaining('The first to diverge is cosine') });
  });
});

describe('other misses', () => {
  test('a wrong token, and a distance off by a thousandth', async () => {
    const path = await copyOfCase('tokenizers');
    const texts = goldenJson<Record<string, { tokens: string[] }[]>>('tokenizers', 'case.json');
    texts.t5![1]!.tokens[2] = 'mo';
    await writeFile(join(path, 'case.json'), JSON.stringify(texts));
    expect(await bruit('verify', path)).toMatchObject({ code: 1, stdout: expect.stringContaining('MISS: 1 of 90 tensors differ. The first to diverge is t5.1.tokens') });
    const other = await copyOfCase('frechet');
    const json = goldenJson<{ cases: { full_rank: { frechet_distance: number } } }>('frechet', 'case.json');
    json.cases.full_rank.frechet_distance *= 1.001;
    await writeFile(join(other, 'case.json'), JSON.stringify(json));
    expect(await bruit('verify', other)).toMatchObject({ code: 1, stdout: expect.stringContaining('The first to diverge is full_rank.frechet_distance') });
  });
});

describe('bad cases', () => {
  const changes: [string, string, (path: string) => Promise<void>][] = [
    ['a model of another class', 'unet2d_class_cond', async (path) => writeFile(join(path, 'config.json'), '{"_class_name": "UNet3DModel"}')],
    ['a config with a misspelt entry', 'unet2d_class_cond', async (path) => writeFile(join(path, 'config.json'), JSON.stringify({ ...goldenJson<object>('unet2d_class_cond', 'config.json'), norm_groups: 4 }))],
    ['a config that the weights do not fit', 'unet2d_class_cond', async (path) => writeFile(join(path, 'config.json'), JSON.stringify({ ...goldenJson<object>('unet2d_class_cond', 'config.json'), num_class_embeds: 11 }))],
    ['no weights', 'unet2d_class_cond', async (path) => rm(join(path, 'diffusion_pytorch_model.safetensors'))],
    ['broken JSON', 'schedulers', async (path) => writeFile(join(path, 'cases.json'), '{"a": ')],
    ['an unknown scheduler', 'schedulers', async (path) => writeFile(join(path, 'cases.json'), '{"a": {"class": "KarrasVeScheduler", "config": {}, "num_inference_steps": 5}}')],
    ['a case of another kind', 'learning_rates', async (path) => writeFile(join(path, 'case.json'), '{"note": "features"}')],
    ['no case at all', 'learning_rates', async (path) => rm(join(path, 'case.json'))],
  ];

  test('one line that says what is wrong', async () => {
    const seen: Record<string, string> = {};
    for (const [what, name, change] of changes) {
      const path = await copyOfCase(name);
      await change(path);
      const { code, stdout, stderr } = await bruit('verify', path);
      expect(stdout, what).toBe('');
      expect(stderr.split('\n').length, stderr).toBe(2);
      seen[what] = `${code} ${stderr.trim().replaceAll(path, 'CASE')}`;
    }
    expect(seen).toMatchInlineSnapshot(`
      {
        "a case of another kind": "2 bruit: CASE is not a reference case that bruit knows: case.json describes no hybrid losses, learning rates, Fréchet distances, tokenizers or random draws",
        "a config that the weights do not fit": "2 bruit: CASE/diffusion_pytorch_model.safetensors: its 207 tensors do not fit the model's 207 parameters; wrong shape (1): class_embedding.weight is [10,32], the model wants [11,32]",
        "a config with a misspelt entry": "2 bruit: CASE/config.json: unknown entry "norm_groups"",
        "a model of another class": "2 bruit: CASE: UNet3DModel is not supported (yet); bruit verifies UNet2DModel, UNet2DConditionModel, ControlNetModel, Transformer2DModel, PriorTransformer, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel, CLIPVisionModelWithProjection, T5EncoderModel, AutoencoderKL, AutoencoderTiny, schedulers, hybrid losses, learning rates, Fréchet distances, tokenizers and torch's random draws",
        "an unknown scheduler": "2 bruit: CASE/cases.json: a: _class_name is "KarrasVeScheduler"; allowed: DDPMScheduler, DDIMScheduler, DDIMInverseScheduler, LCMScheduler, PNDMScheduler, LMSDiscreteScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UnCLIPScheduler, UniPCMultistepScheduler",
        "broken JSON": "2 bruit: CASE/cases.json: not valid JSON: Unexpected end of JSON input",
        "no case at all": "2 bruit: CASE is not a reference case that bruit knows: it is empty",
        "no weights": "2 bruit: CASE has a config.json, but no diffusion_pytorch_model.safetensors beside it",
      }
    `);
  });

  test('nothing is overwritten unless asked', async () => {
    const [path, out] = [await copyOfCase('learning_rates'), await temporary()];
    await writeFile(join(out, 'case.json'), 'mine');
    expect(await bruit('verify', path, '--out', out)).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(/^bruit: .*case\.json exists already; nothing was written/) });
    expect(await readFile(join(out, 'case.json'), 'utf8')).toBe('mine');
    expect((await bruit('verify', path, '--out', out, '--overwrite')).code).toBe(0);
    expect(await readFile(join(out, 'case.json'), 'utf8')).toContain('cosine');
    const own = await bruit('verify', path, '--out', path, '--overwrite');
    expect(own).toMatchObject({ code: 2, stderr: expect.stringContaining('is the case itself') });
    expect(existsSync(join(path, 'case.json'))).toBe(true);
  });
});
