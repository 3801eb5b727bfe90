/** Tokenizers in sub-folders, and texts with their ids under the sub-folder's name in `case.json`. */
import { isJsonObject } from '../io/json';
import { loadTokenizer } from '../text/tokenizer';
import type { CaseFolder, CaseReport } from './report';

interface TokenizedText {
  readonly text: string;
  readonly input_ids: readonly number[];
  readonly attention_mask?: readonly number[];
  readonly tokens?: readonly string[];
}

const isTokenizedText = (json: unknown): json is TokenizedText => isJsonObject(json) && typeof json.text === 'string' && Array.isArray(json.input_ids);

/** The lists of a case, by sub-folder. */
export function tokenizedTexts(json: unknown): Map<string, readonly TokenizedText[]> {
  const lists = isJsonObject(json) ? Object.entries(json).filter((entry): entry is [string, TokenizedText[]] => Array.isArray(entry[1]) && entry[1].length > 0 && entry[1].every(isTokenizedText)) : [];
  return new Map(lists);
}

/** Everything must agree exactly: ids, masks, and tokens where they are recorded. */
export async function verifyTokenizers(report: CaseReport, folder: CaseFolder, texts: ReadonlyMap<string, readonly TokenizedText[]>, file: string): Promise<void> {
  for (const [name, entries] of texts) {
    const tokenizer = await loadTokenizer(folder.model, name);
    report.kinds.push(`${name} tokenizer`);
    entries.forEach(({ text, input_ids, attention_mask, tokens }, i) => {
      const batch = tokenizer.batch([text], input_ids.length);
      const exactly = (key: string, data: Int32Array, expected: readonly number[]): void => report.compareNumbers({ file, name: `${name}.${i}.${key}`, shape: [data.length], data, path: [name, i, key] }, expected, () => 0);
      exactly('input_ids', batch.inputIds, input_ids);
      if (attention_mask) exactly('attention_mask', batch.attentionMask, attention_mask);
      if (!tokens) return;
      const own = tokenizer.tokenize(text);
      const difference = Array.from({ length: Math.max(own.length, tokens.length) }, (_, k) => Number(own[k] !== tokens[k])).reduce((a, b) => a + b, 0);
      report.comparisons.push({ file, name: `${name}.${i}.tokens`, shape: [tokens.length], difference, largest: tokens.length, allowed: 0, ok: difference === 0 });
    });
  }
}
