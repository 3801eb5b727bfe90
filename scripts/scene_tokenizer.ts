/**
 * Writes recipes/scenes/tokenizer: a CLIP tokenizer (byte pairs, vocab.json and merges.txt) in which each word of the scenes' captions is one token, and
 * everything else is spelled in bytes. `node scripts/run.mjs scripts/scene_tokenizer.ts`
 */
import { writeFileAtomic } from '../src/node/files';
import { sceneWords } from '../src/data/scenes';

const folder = 'recipes/scenes/tokenizer';
const [bos, eos] = ['<|startoftext|>', '<|endoftext|>'];
/** Tokens of a caption with its two ends: the longest has eleven words. */
const length = 16;

/** The printable characters that stand for the 256 bytes (GPT-2's list, which CLIP's tokenizer shares). */
function byteSymbols(): string[] {
  const printable = [...range(33, 126), ...range(161, 172), ...range(174, 255)];
  let next = 256;
  return range(0, 255).map((byte) => String.fromCharCode(printable.includes(byte) ? byte : next++));
}
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, i) => from + i);

/** Byte pair encoding (Sennrich et al. 2016): joins the commonest pair until each word is one symbol. */
function learnMerges(words: readonly string[]): [string, string][] {
  const spelled = words.map((word) => [...word].map((c, i) => (i === word.length - 1 ? `${c}</w>` : c)));
  const merges: [string, string][] = [];
  for (;;) {
    const counts = new Map<string, number>();
    for (const symbols of spelled) for (let i = 0; i + 1 < symbols.length; i++) counts.set(`${symbols[i]} ${symbols[i + 1]}`, (counts.get(`${symbols[i]} ${symbols[i + 1]}`) ?? 0) + 1);
    // Ties by spelling, so that the file is the same each time.
    const best = [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))[0];
    if (!best) return merges;
    const [left, right] = best[0].split(' ') as [string, string];
    merges.push([left, right]);
    for (const symbols of spelled) for (let i = 0; i + 1 < symbols.length; i++) if (symbols[i] === left && symbols[i + 1] === right) symbols.splice(i, 2, left + right);
  }
}

const symbols = byteSymbols();
const merges = learnMerges(sceneWords);
const tokens = [...symbols, ...symbols.map((s) => `${s}</w>`), ...merges.map((pair) => pair.join('')), bos, eos];
const special = (content: string, normalized: boolean) => ({ content, lstrip: false, normalized, rstrip: false, single_word: false });
const write = (name: string, value: object): Promise<void> => writeFileAtomic(`${folder}/${name}`, `${JSON.stringify(value, null, 2)}\n`);
await write('vocab.json', Object.fromEntries(tokens.map((token, id) => [token, id])));
await writeFileAtomic(`${folder}/merges.txt`, `#version: 0.2\n${merges.map((pair) => pair.join(' ')).join('\n')}\n`);
await write('special_tokens_map.json', { bos_token: special(bos, true), eos_token: special(eos, true), pad_token: eos, unk_token: special(eos, true) });
await write('tokenizer_config.json', { add_prefix_space: false, bos_token: bos, do_lower_case: true, eos_token: eos, errors: 'replace', model_max_length: length, pad_token: eos, tokenizer_class: 'CLIPTokenizer', unk_token: eos });
process.stdout.write(`${folder}: ${tokens.length} tokens, ${merges.length} merges\n`);
