export interface SamplePicture {
  readonly name: string;
  /** MIME type. */
  readonly type: string;
  readonly file: Uint8Array;
  /** The file, saying that it has another size. */
  readonly sized: (width: number, height: number) => Uint8Array;
}
export const pictures: readonly SamplePicture[];
