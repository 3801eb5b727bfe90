/** What the judge reads in scenes of one or two digits, and whether that is what their captions ask for. */
import { check } from '../src/engine/errors';
import { resizeImage } from '../src/data/transform';
import { cut, sceneSize, shear, slantOf, strokeWidth, type Ink, type ScenePlan } from '../src/data/scenes';
import { pixels, side, type Classifier } from './classifier';

/** Least share of scenes that must be as their captions say. */
export const sceneLimit = 0.9;

/** The longest side of a digit in MNIST's images. */
const digitSize = 20;

/** Slant beyond which a digit is set upright before it is read: the classifier has seen none that lean so much. */
const steep = 0.35;
/** Mean slant of MNIST's digits. */
const usual = 0.12;

/** Ink of a part of a scene that is no digit but a stray dot, in pixels. */
const least = 4;
const inkOf = ({ data }: Ink): number => data.reduce((sum, v) => sum + v, 0);

/** The digits of a scene [32·32] in [0,1], from left to right: two if an empty column near the middle has ink on either side. */
export function separate(scene: Float32Array): Ink[] {
  const column = (c: number): number => {
    let most = 0;
    for (let row = 0; row < sceneSize; row++) most = Math.max(most, scene[row * sceneSize + c]!);
    return most;
  };
  const middle = [15, 16, 14, 17, 13, 18].map((c) => ({ c, ink: column(c) })).reduce((best, x) => (x.ink < best.ink ? x : best));
  if (middle.ink < 0.25) {
    const halves = [part(scene, 0, middle.c), part(scene, middle.c, sceneSize)];
    if (halves.every((half) => inkOf(half) >= least)) return halves;
  }
  return [part(scene, 0, sceneSize)];
}

function part(scene: Float32Array, from: number, to: number): Ink {
  const width = to - from;
  const data = new Float32Array(sceneSize * width);
  for (let row = 0; row < sceneSize; row++) data.set(scene.subarray(row * sceneSize + from, row * sceneSize + to), row * width);
  return cut({ data, height: sceneSize, width });
}

/** A digit as MNIST has them: its longer side 20 pixels, its centre of mass in the middle of 28x28. */
export function asMnist(ink: Ink): Float32Array {
  const slant = slantOf(ink.data, ink.width);
  const { data, height, width } = slant > steep ? cut(shear(ink, usual - slant)) : ink;
  const scale = digitSize / Math.max(height, width);
  const [h, w] = [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
  const digit = resizeImage(data, [1, height, width], [h, w], 'bilinear');
  let [sum, rows, columns] = [0, 0, 0];
  digit.forEach((v, i) => {
    sum += v;
    rows += v * Math.floor(i / w);
    columns += v * (i % w);
  });
  const place = (size: number, moment: number): number => Math.min(Math.max(Math.round((side - 1) / 2 - moment / Math.max(sum, 1e-6)), 0), side - size);
  const [top, left] = [place(h, rows), place(w, columns)];
  const out = new Float32Array(pixels);
  for (let row = 0; row < h; row++) out.set(digit.subarray(row * w, (row + 1) * w), (top + row) * side + left);
  return out;
}

export interface SceneVerdict {
  readonly scenes: number;
  /** Share of scenes with the right number of digits, all of them right. */
  readonly accuracy: number;
  readonly single: number;
  readonly pair: number;
  /** Share with the right number of digits. */
  readonly count: number;
  /** Of scenes read right: mean stroke width in pixels for each weight, and mean slant (columns a row) for slanted and other scenes. */
  readonly strokeWidth: Readonly<Record<'thin' | 'plain' | 'thick', number>>;
  readonly slant: Readonly<Record<'slanted' | 'plain', number>>;
  /** What was read in each scene. */
  readonly read: readonly (readonly number[])[];
}

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / Math.max(values.length, 1);

/** Reads scenes [N,1,32,32] in [0,1]. */
export async function judgeScenes(classifier: Classifier, images: Float32Array, plans: readonly ScenePlan[]): Promise<SceneVerdict> {
  const size = sceneSize * sceneSize;
  check(images.length === plans.length * size, 'shape', () => `${images.length} pixels are not ${plans.length} scenes of ${sceneSize}x${sceneSize}`);
  const scenes = plans.map((_, i) => separate(images.subarray(i * size, (i + 1) * size)));
  const digits = new Float32Array(scenes.flat().length * pixels);
  scenes.flat().forEach((digit, i) => digits.set(asMnist(digit), i * pixels));
  const labels = (await classifier.read(digits)).digits;
  let at = 0;
  const read = scenes.map((parts) => parts.map(() => labels[at++]!));
  const right = plans.map(({ digits: wanted }, i) => wanted.length === read[i]!.length && wanted.every((d, k) => d === read[i]![k]));
  const share = (chosen: (plan: ScenePlan) => boolean): number => mean(plans.flatMap((plan, i) => (chosen(plan) ? [right[i] ? 1 : 0] : [])));
  const measure = (chosen: (plan: ScenePlan) => boolean, of: (p: Ink) => number): number => mean(plans.flatMap((plan, i) => (right[i] && chosen(plan) ? scenes[i]!.map(of) : [])));
  const width = (p: Ink): number => strokeWidth(p.data, p.width);
  const slant = (p: Ink): number => slantOf(p.data, p.width);
  return {
    scenes: plans.length,
    accuracy: share(() => true),
    single: share((p) => p.digits.length === 1),
    pair: share((p) => p.digits.length === 2),
    count: mean(plans.map(({ digits: wanted }, i) => (wanted.length === read[i]!.length ? 1 : 0))),
    strokeWidth: { thin: measure((p) => p.weight === 'thin', width), plain: measure((p) => p.weight === undefined, width), thick: measure((p) => p.weight === 'thick', width) },
    slant: { slanted: measure((p) => p.slanted, slant), plain: measure((p) => !p.slanted, slant) },
    read,
  };
}

