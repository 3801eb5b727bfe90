import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { directory } from '../../src/node/directory';
import { parseSentencePiece } from '../../src/text/sentencepiece';
import { loadTokenizer } from '../../src/text/tokenizer';
import { goldenPath } from '../helpers/golden';

const folder = await mkdtemp(join(tmpdir(), 'bruit-test-'));
afterAll(() => rm(folder, { recursive: true, force: true }));

describe('batches', () => {
  test('are cut to the length between the special tokens, and padded', async () => {
    const clip = await loadTokenizer(directory(goldenPath('tokenizers')), 'clip');
    const ids = clip.encode('under the tree');
    const { shape, inputIds, attentionMask } = clip.batch(['under the tree', ''], ids.length + 1);
    expect(shape).toEqual([2, ids.length + 1]);
    expect([...inputIds]).toEqual([632, ...ids.slice(0, -1), 633, 632, ...Array<number>(ids.length).fill(633)]);
    expect([...attentionMask]).toEqual([...Array<number>(ids.length + 1).fill(1), 1, 1, ...Array<number>(ids.length - 1).fill(0)]);
    expect(clip.batch(['']).shape).toEqual([1, 24]);
  });

  test('of T5 end in </s> and need a length', async () => {
    const t5 = await loadTokenizer(directory(goldenPath('tokenizers/t5')), '');
    expect(t5.bosTokenId).toBeUndefined();
    expect([...t5.batch(['a small red fox'], 4).inputIds]).toEqual([4, 10, 106, 1]);
    expect(() => t5.batch(['a'])).toThrow(/a length must be given/);
  });

  test('extra ids and special tokens of T5 are found in the text, counted from the end', async () => {
    const t5 = await loadTokenizer(directory(goldenPath('tokenizers')), 't5');
    expect(t5.tokenize('a <extra_id_0>fox</s>')).toEqual(['▁a', '<extra_id_0>', '▁fo', 'x', '</s>']);
    const [, first, , , end] = t5.encode('a <extra_id_0>fox</s>');
    expect([first! - t5.encode('<extra_id_99>')[0]!, end]).toEqual([99, 1]);
  });
});

test('a tokenizer.json comes first', async () => {
  const vocab = { '<|startoftext|>': 0, '<|endoftext|>': 1, a: 2, 'b</w>': 3, 'ab</w>': 4, '!': 5 };
  const json = {
    added_tokens: [],
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'Split', pattern: { Regex: '\\p{L}+' }, behavior: 'Removed', invert: true },
    model: { type: 'BPE', vocab, merges: ['a b</w>'], unk_token: '<|endoftext|>', end_of_word_suffix: '</w>' },
    post_processor: null,
    decoder: null,
  };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(json));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ model_max_length: 6, pad_token: '!' }));
  const tokenizer = await loadTokenizer(directory(folder), '');
  expect([...tokenizer.batch(['AB ab']).inputIds]).toEqual([0, 4, 4, 1, 5, 5]);
});

describe('SentencePiece', async () => {
  const bytes = await readFile(goldenPath('tokenizers/t5/spiece.model'));

  test('its normaliser: compatibility forms, white space, its own replacements', () => {
    const { normalize } = parseSentencePiece(bytes, 'spiece.model');
    expect(normalize('  ﬁne　Ａ\u00a0①\u200b ½  ')).toBe('▁fine▁A▁1▁1⁄2');
    expect(normalize('cafe\u0301')).toBe('▁café');
    expect(normalize(' \n\t ')).toBe('');
    expect(normalize('～ \u0007x')).toBe('▁～▁x');
  });

  test('damaged and foreign files are refused by name', () => {
    expect(() => parseSentencePiece(bytes.subarray(0, 5000), 'a/spiece.model')).toThrow(/a\/spiece\.model: not a SentencePiece model/);
    expect(() => parseSentencePiece(new Uint8Array(), 'a/spiece.model')).toThrow(/it has 0 pieces/);
    expect(() => parseSentencePiece(new TextEncoder().encode('{"version": 1}'), 'a')).toThrow(/not a SentencePiece model/);
  });
});

test('a folder without a tokenizer, and a special token that is none', async () => {
  await expect(loadTokenizer(directory(goldenPath()))).rejects.toThrow(/tokenizer has no tokenizer \(looked for tokenizer\.json, vocab\.json, spiece\.model\)/);
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ pad_token: '[PAD]' }));
  await expect(loadTokenizer(directory(folder), '')).rejects.toThrow(/has no token "\[PAD\]" \(its pad_token\)/);
});
