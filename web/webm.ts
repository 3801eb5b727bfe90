/** Animations as WebM, by the browser's own encoder. */

/** A picture of an animation: RGBA, row by row, and how long it stays. */
export interface Frame {
  readonly width: number;
  readonly height: number;
  readonly rgba: Uint8ClampedArray<ArrayBuffer>;
  readonly milliseconds: number;
}

/** Small pictures are enlarged to about this width: players and encoders dislike those of a few pixels. */
const comfortable = 256;

/**
 * Records frames, in the time that they take to show.
 * @throws Error where the browser records no WebM.
 */
export async function recordWebm(frames: readonly Frame[]): Promise<Uint8Array> {
  const type = ['video/webm;codecs=vp9', 'video/webm;codecs=vp8'].find((each) => typeof MediaRecorder !== 'undefined' && MediaRecorder.isTypeSupported(each));
  if (!type) throw new Error('This browser records no WebM; save the trajectory as GIF.');
  const [first] = frames;
  const scale = Math.max(1, Math.round(comfortable / first!.width));
  const [picture, canvas] = [document.createElement('canvas'), document.createElement('canvas')];
  Object.assign(picture, { width: first!.width, height: first!.height });
  // Codecs take colours for two by two pixels.
  Object.assign(canvas, { width: Math.ceil((first!.width * scale) / 2) * 2, height: Math.ceil((first!.height * scale) / 2) * 2 });
  const context = canvas.getContext('2d')!;
  context.imageSmoothingEnabled = false;
  const stream = canvas.captureStream(0);
  const [track] = stream.getVideoTracks() as [CanvasCaptureMediaStreamTrack];
  const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 4_000_000 });
  const parts: Blob[] = [];
  recorder.ondataavailable = ({ data }) => void parts.push(data);
  const stopped = new Promise<void>((resolve, reject) => {
    recorder.onstop = () => resolve();
    recorder.onerror = () => reject(new Error('The browser stopped recording; save the trajectory as GIF.'));
  });
  const show = async ({ rgba, width, height, milliseconds }: Frame): Promise<void> => {
    picture.getContext('2d')!.putImageData(new ImageData(rgba, width, height), 0, 0);
    context.drawImage(picture, 0, 0, width * scale, height * scale);
    track.requestFrame();
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
  };
  recorder.start();
  for (const frame of frames) await show(frame);
  // A frame lasts until the next.
  await show({ ...frames.at(-1)!, milliseconds: 100 });
  recorder.stop();
  await stopped;
  track.stop();
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
