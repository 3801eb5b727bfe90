/**
 * A 5x7 dot matrix font for labels in image grids: printable ASCII from U+0020, five columns a glyph, two hexadecimal
 * digits a column, lowest bit on top. (Plots use a real font; this one needs no rasteriser and works anywhere.)
 */
const COLUMNS =
  '0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0005030000 ' + // space ! " # $ % & '
  '001c224100 0041221c00 14083e0814 08083e0808 0050300000 0808080808 0060600000 2010080402 ' + // ( ) * + , - . /
  '3e5149453e 00427f4000 4261514946 2141454b31 1814127f10 2745454539 3c4a494930 0171090503 ' + // 0-7
  '3649494936 064949291e 0036360000 0056360000 0814224100 1414141414 0041221408 0201510906 ' + // 8 9 : ; < = > ?
  '324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a ' + // @ A-G
  '7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e ' + // H-O
  '7f09090906 3e4151215e 7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f ' + // P-W
  '6314081463 0708700807 6151494543 007f414100 0204081020 0041417f00 0402010204 4040404040 ' + // X Y Z [ \ ] ^ _
  '0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418 087e090102 0c5252523e ' + // ` a-g
  '7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438 ' + // h-o
  '7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c ' + // p-w
  '4428102844 0c5050503c 4464544c44 0008364100 00007f0000 0041360800 0804081008'; // x y z { | } ~

const GLYPHS = COLUMNS.split(' ').map((glyph) => glyph.match(/../g)!.map((column) => parseInt(column, 16)));

/** Height of a line and advance of a character, in font dots. */
export const GLYPH_HEIGHT = 7;
export const GLYPH_ADVANCE = 6;

/** Width of `text` in font dots. */
export function textWidth(text: string): number {
  return Math.max(0, text.length * GLYPH_ADVANCE - 1);
}

/** Calls `dot(x, y)` for each dot of `text`, (0, 0) being its top left; a character the font lacks is drawn as `?`. */
export function drawText(text: string, dot: (x: number, y: number) => void): void {
  for (let i = 0; i < text.length; i++) {
    const glyph = GLYPHS[text.charCodeAt(i) - 0x20] ?? GLYPHS['?'.charCodeAt(0) - 0x20]!;
    glyph.forEach((column, x) => {
      for (let y = 0; y < GLYPH_HEIGHT; y++) if ((column >> y) & 1) dot(i * GLYPH_ADVANCE + x, y);
    });
  }
}
