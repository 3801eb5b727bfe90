/** Tokenizers of CLIP and T5, from the files that transformers writes; the algorithms are `@huggingface/tokenizers`'. */
import { Tokenizer as Model } from '@huggingface/tokenizers';
import { BruitError } from '../engine/errors';
import { readJson, type ModelFolder } from '../io/folder';
import { isJsonObject } from '../io/json';
import { parseSentencePiece } from './sentencepiece';

/** Token ids of several texts, padded to one length. */
export interface TokenBatch {
  /** [N, length]. */
  readonly shape: readonly [number, number];
  readonly inputIds: Int32Array;
  /** 1 for tokens, 0 for padding. */
  readonly attentionMask: Int32Array;
}

export interface Tokenizer {
  /** Put before every text; T5 has none. */
  readonly bosTokenId: number | undefined;
  readonly eosTokenId: number;
  readonly padTokenId: number;
  /** Longest sequence that the model takes, special tokens included; Infinity if its files do not say. */
  readonly modelMaxLength: number;
  /** Tokens of a text as strings, without special tokens around it. */
  tokenize(text: string): string[];
  /** Their ids. */
  encode(text: string): number[];
  /** Ids with special tokens, cut to `maxLength` (modelMaxLength by default) and padded to it: transformers' `padding="max_length", truncation=True`. */
  batch(texts: readonly string[], maxLength?: number): TokenBatch;
}

/** What a family does with a text before the special tokens. */
interface Encoder {
  readonly tokenize: (text: string) => string[];
  readonly encode: (text: string) => number[];
  readonly id: (token: string) => number | undefined;
}

/**
 * Opens the tokenizer in sub-folder `path` of `folder`: `tokenizer.json`; else `vocab.json` and `merges.txt` (CLIP); else `spiece.model` (T5).
 * @throws BruitError `config` if there is none of these, or they do not fit together.
 */
export async function loadTokenizer(folder: ModelFolder, path = 'tokenizer'): Promise<Tokenizer> {
  const at = (file: string): string => (path ? `${path}/${file}` : file);
  const optional = async (file: string): Promise<Record<string, unknown>> => ((await folder.has(at(file))) ? readJson(folder, at(file)) : {});
  const config = { ...(await optional('special_tokens_map.json')), ...(await optional('tokenizer_config.json')) };
  const special = (name: string): string | undefined => {
    const token = config[name];
    return typeof token === 'string' ? token : isJsonObject(token) && typeof token.content === 'string' ? token.content : undefined;
  };
  let encoder: Encoder;
  // T5 puts nothing before a text; CLIP's pieces know.
  let clip = true;
  if (await folder.has(at('tokenizer.json'))) {
    const json = await readJson(folder, at('tokenizer.json'));
    clip = isJsonObject(json.model) && json.model.type === 'BPE';
    encoder = fromModel(new Model(json, config));
  } else if (await folder.has(at('vocab.json'))) {
    const vocab = (await readJson(folder, at('vocab.json'))) as Record<string, number>;
    for (const [token, id] of Object.entries(vocab)) if (!Number.isInteger(id)) throw new BruitError('config', `${folder.name}: ${at('vocab.json')} gives ${JSON.stringify(token)} the id ${JSON.stringify(id)}, which is no integer`);
    const specials = ['bos_token', 'eos_token', 'pad_token', 'unk_token'].flatMap((name) => special(name) ?? []);
    encoder = fromModel(new Model(clipTokenizer(vocab, await folder.text(at('merges.txt')), [...new Set(specials)], special('unk_token') ?? '<|endoftext|>'), config));
  } else if (await folder.has(at('spiece.model'))) {
    const source = await folder.source(at('spiece.model'));
    const bytes = await source.read(0, source.size).finally(() => source.close?.());
    clip = false;
    encoder = t5Encoder(bytes, `${folder.name}/${at('spiece.model')}`, typeof config.extra_ids === 'number' ? config.extra_ids : 100);
  } else {
    throw new BruitError('config', `${folder.name}: ${path || 'the folder'} has no tokenizer (looked for tokenizer.json, vocab.json, spiece.model)`);
  }
  const idOf = (name: string, fallback: string): number => {
    const token = special(name) ?? fallback;
    const id = encoder.id(token);
    if (id === undefined) throw new BruitError('config', `${folder.name}: the tokenizer in ${path || 'the folder'} has no token ${JSON.stringify(token)} (its ${name})`);
    return id;
  };
  const eosTokenId = idOf('eos_token', clip ? '<|endoftext|>' : '</s>');
  const padTokenId = idOf('pad_token', clip ? '<|endoftext|>' : '<pad>');
  const bosTokenId = clip ? idOf('bos_token', '<|startoftext|>') : undefined;
  // transformers writes 10^30 for "no limit".
  const modelMaxLength = typeof config.model_max_length === 'number' && config.model_max_length < 1e9 ? config.model_max_length : Infinity;
  return {
    ...encoder,
    bosTokenId,
    eosTokenId,
    padTokenId,
    modelMaxLength,
    batch(texts, maxLength = modelMaxLength) {
      if (!Number.isInteger(maxLength) || maxLength < 2) throw new BruitError('input', `${folder.name}: a length must be given for this tokenizer's sequences (its files name none), of at least 2; got ${maxLength}`);
      return padTokens(texts.map((text) => wrapTokens(encoder.encode(text), { bosTokenId, eosTokenId }, maxLength)), padTokenId, maxLength);
    },
  };
}

/** `ids` between the special tokens, cut so that they fit into `length`. */
export const wrapTokens = (ids: readonly number[], { bosTokenId, eosTokenId }: Pick<Tokenizer, 'bosTokenId' | 'eosTokenId'>, length: number): number[] => {
  const bos = bosTokenId === undefined ? [] : [bosTokenId];
  return [...bos, ...ids.slice(0, length - bos.length - 1), eosTokenId];
};

/** Sequences of at most `length` ids as rows of that length. */
export function padTokens(sequences: readonly (readonly number[])[], padTokenId: number, length: number): TokenBatch {
  const inputIds = new Int32Array(sequences.length * length).fill(padTokenId);
  const attentionMask = new Int32Array(inputIds.length);
  sequences.forEach((ids, row) => {
    inputIds.set(ids, row * length);
    attentionMask.fill(1, row * length, row * length + ids.length);
  });
  return { shape: [sequences.length, length], inputIds, attentionMask };
}

const bare = { add_special_tokens: false };

const fromModel = (model: Model): Encoder => ({
  tokenize: (text) => model.tokenize(text, bare),
  encode: (text) => model.encode(text, bare).ids,
  id: (token) => model.token_to_id(token),
});

const addedToken = (content: string, id: number, normalized: boolean) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized, special: true });

/** CLIPTokenizer's `tokenizer.json`: text is cleaned and lower-cased as BERT's is, split into words, letters runs and digits, and each into byte pairs. */
function clipTokenizer(vocab: Readonly<Record<string, number>>, merges: string, specials: readonly string[], unknown: string): object {
  // The first line is the format's version; OpenAI's list of merges is longer than its vocabulary.
  const lines = merges.trim().split('\n').slice(1, 49152 - 256 - 2 + 1);
  return {
    added_tokens: specials.filter((token) => Object.hasOwn(vocab, token)).map((token) => addedToken(token, vocab[token]!, true)),
    normalizer: {
      type: 'Sequence',
      normalizers: [{ type: 'BertNormalizer', clean_text: true, handle_chinese_chars: true, lowercase: false, strip_accents: false }, { type: 'NFC' }, { type: 'Lowercase' }],
    },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: "'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^\\s\\p{L}\\p{N}]+" }, behavior: 'Removed', invert: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    model: { type: 'BPE', vocab, merges: lines.map((line) => line.split(' ')), unk_token: unknown, end_of_word_suffix: '</w>', continuing_subword_prefix: '', fuse_unk: false },
    decoder: null,
    post_processor: null,
  };
}

/** T5Tokenizer: pieces of a SentencePiece model, and behind them `<extra_id_0>` and so on, counted from the end. */
function t5Encoder(bytes: Uint8Array, file: string, extraIds: number): Encoder {
  const { vocab, unkId, control, normalize } = parseSentencePiece(bytes, file);
  const extra = Array.from({ length: extraIds }, (_, i): [string, number] => [`<extra_id_${extraIds - 1 - i}>`, 0]);
  const model = new Model({ added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, model: { type: 'Unigram', unk_id: unkId, vocab: [...vocab, ...extra] } }, {});
  const specials = [...control.map((id) => vocab[id]![0]), vocab[unkId]![0], ...extra.map(([token]) => token)];
  const pattern = new RegExp(`(${specials.map((token) => token.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('|')})`);
  const tokenize = (text: string): string[] => text.split(pattern).flatMap((part, i) => (i % 2 ? [part] : normalize(part) ? model.tokenize(normalize(part)) : []));
  return { tokenize, encode: (text) => tokenize(text).map((token) => model.token_to_id(token) ?? unkId), id: (token) => model.token_to_id(token) };
}
