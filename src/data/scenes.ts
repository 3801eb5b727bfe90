/**
 * Scenes of one or two handwritten digits with a caption each, composed from a data set of digits: what a small text-to-image model can be trained on.
 * "a thick slanted four", "two threes side by side", "a seven next to a two".
 */
import { check } from '../engine/errors';
import { RngStream, uniforms } from '../engine/rng';
import { checkIndex, type ImageDataset } from './dataset';
import { resizeImage } from './transform';

export const digitWords = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'] as const;
const plurals = ['zeros', 'ones', 'twos', 'threes', 'fours', 'fives', 'sixes', 'sevens', 'eights', 'nines'] as const;

/** Height and width of a scene. */
export const sceneSize = 32;

/** What is seen, and what is said of it. */
export interface ScenePlan {
  readonly caption: string;
  /** From left to right. */
  readonly digits: readonly number[];
  readonly weight: 'thick' | 'thin' | undefined;
  readonly slanted: boolean;
}

const withArticle = (words: string): string => `${/^[aeiou]/.test(words) && !/^one\b/.test(words) ? 'an' : 'a'} ${words}`;

const singleTemplates: readonly ((style: string, digit: string) => string)[] = [
  (style, digit) => withArticle(`${style}${digit}`),
  (style, digit) => withArticle(`handwritten ${style}${digit}`),
  (style, digit) => withArticle(`${style}handwritten ${digit}`),
  (style, digit) => `the ${style}digit ${digit}`,
  (style, digit) => `a picture of ${withArticle(`${style}${digit}`)}`,
  (style, digit) => `a drawing of the ${style}digit ${digit}`,
  (style, digit) => `${withArticle(`${style}${digit}`)} written by hand`,
  (style, digit) => `the ${style}number ${digit}`,
  (style, digit) => `an image of ${withArticle(`${style}handwritten ${digit}`)}`,
  (style, digit) => `${style}${digit}`,
];
const pairTemplates: readonly ((style: string, left: string, right: string) => string)[] = [
  (style, left, right) => `${withArticle(`${style}${left}`)} and ${withArticle(`${style}${right}`)}`,
  (style, left, right) => `${withArticle(`${style}${left}`)} next to ${withArticle(`${style}${right}`)}`,
  (style, left, right) => `${withArticle(`${style}${left}`)} to the left of ${withArticle(`${style}${right}`)}`,
  (style, left, right) => `the ${style}digits ${left} and ${right}`,
  (style, left, right) => `a picture of ${withArticle(`${style}${left}`)} beside ${withArticle(`${style}${right}`)}`,
];
const sameTemplates: readonly ((style: string, digits: string) => string)[] = [
  (style, digits) => `two ${style}${digits} side by side`,
  (style, digits) => `two ${style}${digits}`,
  (style, digits) => `a pair of ${style}${digits}`,
];

/** Every word that a caption may hold. */
export const sceneWords: readonly string[] = [
  ...digitWords, ...plurals,
  ...['a', 'an', 'and', 'beside', 'by', 'digit', 'digits', 'drawing', 'hand', 'handwritten', 'image', 'left', 'next', 'number', 'of', 'pair', 'picture', 'side', 'slanted', 'the', 'thick', 'thin', 'to', 'written'],
];

/** One caption in eight is never trained on. */
export function isHeldBack(caption: string): boolean {
  // FNV-1a, the low bits mixed once more.
  let hash = 0x811c9dc5;
  for (let i = 0; i < caption.length; i++) hash = Math.imul(hash ^ caption.charCodeAt(i), 0x01000193);
  return (Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 28) % 8 === 0;
}

/** Scene `index` of a seed; `pairs` is the share of those with two digits. `heldBack` chooses between captions for training and those kept from it. */
export function planScene(seed: number, index: number, heldBack: boolean, pairs = 0.5): ScenePlan {
  for (let attempt = 0; ; attempt++) {
    const plan = drawScene(uniforms(seed, { index, step: attempt, stream: RngStream.scene }, 7), pairs);
    if (isHeldBack(plan.caption) === heldBack) return plan;
  }
}

function drawScene([count, styled, weighted, same, first, second, form]: Float32Array, pairs: number): ScenePlan {
  const pick = <T>(list: readonly T[], u: number): T => list[Math.min(Math.floor(u * list.length), list.length - 1)]!;
  const digit = (u: number): number => Math.min(Math.floor(u * 10), 9);
  const weight = pick([undefined, undefined, 'thick', 'thin'] as const, weighted!);
  const slanted = styled! < 0.3;
  const style = `${weight ? `${weight} ` : ''}${slanted ? 'slanted ' : ''}`;
  const left = digit(first!);
  if (count! < 1 - pairs) return { caption: pick(singleTemplates, form!)(style, digitWords[left]!), digits: [left], weight, slanted };
  if (same! < 0.4) return { caption: pick(sameTemplates, form!)(style, plurals[left]!), digits: [left, left], weight, slanted };
  const right = digit(second!);
  return { caption: pick(pairTemplates, form!)(style, digitWords[left]!, digitWords[right]!), digits: [left, right], weight, slanted };
}

export interface SceneOptions {
  readonly count: number;
  readonly seed?: number;
  /** Share with two digits, 0.5 by default. */
  readonly pairs?: number;
  /** Captions kept from training in place of the others. */
  readonly heldBack?: boolean;
}

export interface SceneDataset extends ImageDataset {
  readonly captions: readonly string[];
  readonly plans: readonly ScenePlan[];
}

/** `count` scenes [1,32,32] of the digits of `dataset` [1,28,28]; scene i is a function of (seed, i). */
export async function digitScenes(dataset: ImageDataset, { count, seed = 0, pairs, heldBack = false }: SceneOptions): Promise<SceneDataset> {
  const [channels, height, width] = dataset.shape;
  check(channels === 1 && height === 28 && width === 28, 'input', () => `scenes are composed of digits [1,28,28]; ${dataset.name} has [${dataset.shape}]`);
  const pools = await stylePools(dataset);
  const plans = Array.from({ length: count }, (_, i) => planScene(seed, i, heldBack, pairs));
  const name = `${dataset.name} scenes`;
  return {
    name,
    length: count,
    shape: [1, sceneSize, sceneSize],
    classes: undefined,
    plans,
    captions: plans.map((p) => p.caption),
    async get(index) {
      const plan = plans[checkIndex(index, count, name)]!;
      const u = uniforms(seed, { index, step: 0xffff, stream: RngStream.scene }, 8);
      const inks = await Promise.all(
        plan.digits.map(async (digit, k) => {
          const pool = pools[digit]![plan.weight ?? 'any'];
          const { image } = await dataset.get(pool[Math.min(Math.floor(u[k]! * pool.length), pool.length - 1)]!);
          return styled(image.map((v) => (v + 1) / 2), plan, u[2 + k]!);
        }),
      );
      return { image: compose(inks, [u[4]!, u[5]!, u[6]!, u[7]!]), label: 0 };
    },
  };
}

/** Items of each digit: all of them, and the thickest and thinnest thirds. */
async function stylePools(dataset: ImageDataset): Promise<Record<'any' | 'thick' | 'thin', number[]>[]> {
  const items: { index: number; width: number }[][] = Array.from({ length: 10 }, () => []);
  for (let index = 0; index < dataset.length; index++) {
    const { image, label } = await dataset.get(index);
    items[label]?.push({ index, width: strokeWidth(image.map((v) => (v + 1) / 2), 28) });
  }
  return items.map((list, digit) => {
    check(list.length >= 3, 'input', () => `scenes: ${dataset.name} has too few images of the digit ${digit}`);
    const sorted = [...list].sort((a, b) => a.width - b.width || a.index - b.index).map((item) => item.index);
    const third = Math.floor(sorted.length / 3);
    return { any: list.map((item) => item.index), thin: sorted.slice(0, third), thick: sorted.slice(-third) };
  });
}

/** Mean width of the strokes of ink [0,1] in pixels: twice the area over the length of its outline. */
export function strokeWidth(ink: Float32Array, width: number): number {
  let [area, outline] = [0, 0];
  for (let i = 0; i < ink.length; i++) {
    area += ink[i]!;
    const right = (i + 1) % width ? ink[i + 1]! : 0;
    const below = i + width < ink.length ? ink[i + width]! : 0;
    outline += Math.hypot(right - ink[i]!, below - ink[i]!);
  }
  return outline > 0 ? (2 * area) / outline : 0;
}

/** How far ink leans to the right: columns to the right for each row upwards (the regression of column on row). */
export function slantOf(ink: Float32Array, width: number): number {
  let [sum, rows, columns] = [0, 0, 0];
  for (let i = 0; i < ink.length; i++) {
    sum += ink[i]!;
    rows += ink[i]! * Math.floor(i / width);
    columns += ink[i]! * (i % width);
  }
  let [both, square] = [0, 0];
  for (let i = 0; i < ink.length; i++) {
    const row = Math.floor(i / width) - rows / sum;
    both += ink[i]! * row * ((i % width) - columns / sum);
    square += ink[i]! * row * row;
  }
  return square > 0 ? -both / square : 0;
}

export interface Ink {
  readonly data: Float32Array;
  readonly height: number;
  readonly width: number;
}

const side = 28;

/** A digit as the caption says, cut to its ink. */
function styled(image: Float32Array, { weight, slanted }: ScenePlan, u: number): Ink {
  let ink: Ink = { data: image, height: side, width: side };
  if (weight === 'thick') ink = { ...ink, data: thicken(ink.data, 0.2 + 0.2 * u) };
  if (slanted) ink = shear(ink, 0.4 + 0.2 * u - slantOf(ink.data, side));
  return cut(ink);
}

/** Ink that spreads to the four neighbours, in part. */
function thicken(ink: Float32Array, amount: number): Float32Array {
  return ink.map((v, i) => {
    const [row, column] = [Math.floor(i / side), i % side];
    const near = Math.max(row > 0 ? ink[i - side]! : 0, row < side - 1 ? ink[i + side]! : 0, column > 0 ? ink[i - 1]! : 0, column < side - 1 ? ink[i + 1]! : 0);
    return Math.max(v, amount * near);
  });
}

/** Moves each row to the right by `amount` for every row that it is above the middle, on a canvas wide enough. */
export function shear({ data, height, width }: Ink, amount: number): Ink {
  const room = Math.ceil((Math.abs(amount) * height) / 2) + 1;
  const wide = width + 2 * room;
  const out = new Float32Array(height * wide);
  for (let row = 0; row < height; row++) {
    const move = amount * ((height - 1) / 2 - row);
    for (let column = 0; column < wide; column++) {
      const x = column - room - move;
      const left = Math.floor(x);
      const at = (c: number): number => (c >= 0 && c < width ? data[row * width + c]! : 0);
      out[row * wide + column] = (1 - (x - left)) * at(left) + (x - left) * at(left + 1);
    }
  }
  return { data: out, height, width: wide };
}

/** Ink above which a pixel belongs to a digit. */
const visible = 0.15;

/** The smallest box with all visible ink; one pixel if there is none. */
export function inkBox(data: Float32Array, height: number, width: number): { readonly top: number; readonly left: number; readonly height: number; readonly width: number } {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (data[row * width + column]! <= visible) continue;
      top = Math.min(top, row);
      bottom = row;
      left = Math.min(left, column);
      right = Math.max(right, column);
    }
  }
  return bottom < 0 ? { top: 0, left: 0, height: 1, width: 1 } : { top, left, height: bottom - top + 1, width: right - left + 1 };
}

export function cut({ data, height, width }: Ink): Ink {
  const box = inkBox(data, height, width);
  const out = new Float32Array(box.height * box.width);
  for (let row = 0; row < box.height; row++) out.set(data.subarray((box.top + row) * width + box.left, (box.top + row) * width + box.left + box.width), row * box.width);
  return { data: out, height: box.height, width: box.width };
}

/** Digits on a black canvas, one in the middle or two in the halves, each a little off its place; [1,32,32] in [-1,1]. */
function compose(inks: readonly Ink[], u: readonly number[]): Float32Array {
  const out = new Float32Array(sceneSize * sceneSize).fill(-1);
  // Between two digits two columns stay empty.
  const places = inks.length === 1 ? [{ left: 2, width: 28 }] : [{ left: 1, width: 14 }, { left: 17, width: 14 }];
  inks.forEach((ink, k) => {
    const place = places[k]!;
    const fit = Math.min(1, place.width / ink.width, 24 / ink.height);
    const [height, width] = [Math.max(1, Math.round(ink.height * fit)), Math.max(1, Math.min(place.width, Math.round(ink.width * fit)))];
    const data = resizeImage(ink.data, [1, ink.height, ink.width], [height, width]);
    const shake = (room: number, amount: number): number => Math.round(room / 2 + (amount - 0.5) * Math.min(room, 4));
    const top = 2 + shake(sceneSize - 4 - height, u[2 * k]!);
    const left = place.left + shake(place.width - width, u[2 * k + 1]!);
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) out[(top + row) * sceneSize + left + column] = 2 * Math.min(1, data[row * width + column]!) - 1;
  });
  return out;
}
