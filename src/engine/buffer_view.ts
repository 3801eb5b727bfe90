import type { Shape } from './shape';

/** How weights may lie in GPU memory other than as plain elements: as words that the kernels unpack (layouts: src/io/packed.ts). */
export type PackedFormat = 'f16' | 'bf16' | 'int8' | 'int4';

/** Of a packed parameter. The tensor itself is f32: that is what its numbers are once read. */
export interface Packed {
  readonly format: PackedFormat;
  readonly bytes: number;
  /** Packed as a table of rows to look up, not as the matrix of a product. */
  readonly table: boolean;
}

/** A range of a GPU buffer; `offset` is a multiple of the device's storage offset alignment (256 by default). */
export interface BufferView {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  /** Set for a packed parameter. */
  readonly packed?: Packed;
  /** Where a parameter is longer than one binding may be: its parts along one axis, in order. `buffer` and `offset` are then those of the first. */
  readonly parts?: readonly { readonly shape: Shape; readonly view: BufferView }[];
}
