/** Prompts longer than the text encoder's window, and prompts whose words carry weights, as AUTOMATIC1111's web UI introduced them. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { div, mul } from '../engine/ops/pointwise';
import { mean } from '../engine/ops/sum';
import { padTokens, wrapTokens, type TokenBatch, type Tokenizer } from './tokenizer';

export interface WeightedText {
  readonly text: string;
  readonly weight: number;
}

/**
 * Splits a prompt by its weights: `(text)` is worth 1.1, `[text]` 1/1.1, `(text:1.3)` 1.3; they nest and multiply. A backslash takes a
 * bracket literally. Brackets that nothing closes weigh what follows, as they do there; a closing one without an opening one is text.
 */
export function parseWeightedPrompt(prompt: string): WeightedText[] {
  const parts: { text: string; weight: number }[] = [];
  const open: { bracket: '(' | '['; from: number }[] = [];
  const scale = (from: number, factor: number): void => {
    for (const part of parts.slice(from)) part.weight *= factor;
  };
  const token = /\\([()[\]\\])|:\s*([+-]?[\d.]+)\s*\)|[()[\]]|[^\\()[\]:]+|[\s\S]/g;
  for (const [whole, escaped, weight] of prompt.matchAll(token)) {
    const inner = open[open.length - 1];
    if (escaped !== undefined) parts.push({ text: escaped, weight: 1 });
    else if (whole === '(' || whole === '[') open.push({ bracket: whole, from: parts.length });
    else if (weight !== undefined && inner?.bracket === '(' && Number.isFinite(Number(weight))) scale(open.pop()!.from, Number(weight));
    else if (whole === ')' && inner?.bracket === '(') scale(open.pop()!.from, 1.1);
    else if (whole === ']' && inner?.bracket === '[') scale(open.pop()!.from, 1 / 1.1);
    else parts.push({ text: whole, weight: 1 });
  }
  for (const { bracket, from } of open) scale(from, bracket === '(' ? 1.1 : 1 / 1.1);
  const merged: { text: string; weight: number }[] = [];
  for (const part of parts) {
    const last = merged[merged.length - 1];
    if (last?.weight === part.weight) last.text += part.text;
    else merged.push({ ...part });
  }
  return merged.length ? merged : [{ text: '', weight: 1 }];
}

export interface LongPromptOptions {
  /** Window of the text encoder, special tokens included; the tokenizer's modelMaxLength by default. */
  readonly window?: number;
  /** Read `(text:1.3)` and its kin; otherwise brackets are text. */
  readonly weights?: boolean;
}

export interface LongPrompts extends TokenBatch {
  /** Windows of each prompt: rows `chunks·i … chunks·i + chunks − 1` of the batch are those of prompt i. Their states follow each other along the token axis. */
  readonly chunks: number;
  /** Weight of every token, [N·chunks, window]; 1 for special tokens and padding. */
  readonly tokenWeights: Float32Array;
}

/** Tokens of prompts of any length in windows of the encoder's, each between special tokens of its own; all prompts get as many as the longest needs. */
export function encodeLongPrompts(tokenizer: Tokenizer, prompts: readonly string[], { window = tokenizer.modelMaxLength, weights = false }: LongPromptOptions = {}): LongPrompts {
  const special = tokenizer.bosTokenId === undefined ? 1 : 2;
  const room = window - special;
  if (!Number.isInteger(window) || room < 1) throw new BruitError('input', `window ${window} must be an integer of at least ${special + 1}: give the length of the text encoder's sequences`);
  const encoded = prompts.map((prompt) => (weights ? parseWeightedPrompt(prompt) : [{ text: prompt, weight: 1 }]).flatMap(({ text, weight }) => tokenizer.encode(text).map((id) => ({ id, weight }))));
  const chunks = Math.max(1, ...encoded.map((tokens) => Math.ceil(tokens.length / room)));
  const rows = encoded.flatMap((tokens) => Array.from({ length: chunks }, (_, i) => tokens.slice(i * room, (i + 1) * room)));
  const tokenWeights = new Float32Array(rows.length * window).fill(1);
  rows.forEach((tokens, row) => tokens.forEach(({ weight }, i) => (tokenWeights[row * window + special - 1 + i] = weight)));
  return { ...padTokens(rows.map((tokens) => wrapTokens(tokens.map((t) => t.id), tokenizer, window)), tokenizer.padTokenId, window), chunks, tokenWeights };
}

/**
 * Applies token weights to a prompt's states: `states` [N,T,C] times `weights` [N,T,1], then scaled so that the mean of each prompt's numbers is
 * what it was. The states of several windows are joined first, so that this mean is the prompt's.
 */
export function weightTokens(states: Tensor, weights: Tensor): Tensor {
  const weighted = mul(states, weights);
  return mul(weighted, div(mean(states, [1, 2]), mean(weighted, [1, 2])));
}
