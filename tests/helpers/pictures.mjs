/** One picture of 37x19 pixels in the formats that browsers read, by Pillow, and the same with other sizes in their headers. */

const bytes = (base64) => new Uint8Array(Buffer.from(base64, 'base64'));
const gif = bytes('R0lGODdhJQATAIEAAAD/AMgeHgAAAAAAACwAAAAAJQATAEAILwADCBxIsKDBgwgTKlzIsKHDhxAjSpxIsaLFixgzatzIkSCAjiBDihxJsqRJkQEBADs=');
const vp8 = bytes('UklGRkYAAABXRUJQVlA4IDoAAAAwAwCdASolABMAPxGGu1csKSYjpWgBgCIJZQDO7A8KmggAAP7mAQxD3uWisC/6u/j79sIYbDNLQAAA');
const vp8l = bytes('UklGRjAAAABXRUJQVlA4TCQAAAAvJIAEAA/wj/9BHo/5jzQQZhuhzJ/wngU4gYj+9wCCoCEI8gc=');
const vp8x = bytes('UklGRmoAAABXRUJQVlA4WAoAAAAIAAAAJAAAEgAAVlA4IDoAAAAwAwCdASolABMAPxGGu1csKSYjpWgBgCIJZQDO7A8KmggAAP7mAQxD3uWisC/6u/j79sIYbDNLQAAARVhJRgoAAABJSSoACAAAAAAA');
const avif = bytes(
  'AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAMwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAJQAAABMAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAO21kYXQSAAoJGBUkk0QENBoQMiRHEeHhd3TTTTCwAADv+tvU9OWP6nvZtDPssHFG90+t4soXyIg=',
);
/** Rows of 37 pixels of 3 bytes fill up to 112. */
const bmp = new Uint8Array(54 + 112 * 19).fill(90);
bmp.set([0x42, 0x4d, 0, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 37, 0, 0, 0, 19, 0, 0, 0, 1, 0, 24, 0, ...new Array(24).fill(0)]);
new DataView(bmp.buffer).setUint32(2, bmp.length, true);

const ispe = String.fromCharCode(...avif).indexOf('ispe') + 8;

/** `[name, type, file, the file saying that it is width x height]`. */
export const pictures = [
  ['GIF', 'image/gif', gif, (v, w, h) => (v.setUint16(6, w, true), v.setUint16(8, h, true))],
  ['GIF, its frame', 'image/gif', gif, (v, w, h, at = String.fromCharCode(...gif).indexOf(',\0\0')) => (v.setUint16(at + 5, w, true), v.setUint16(at + 7, h, true))],
  ['WebP, lossy', 'image/webp', vp8, (v, w, h) => (v.setUint16(26, w, true), v.setUint16(28, h, true))],
  ['WebP, lossless', 'image/webp', vp8l, (v, w, h) => v.setUint32(21, (w - 1) | ((h - 1) << 14), true)],
  ['WebP, extended', 'image/webp', vp8x, (v, w, h) => (v.setUint32(24, w - 1, true), v.setUint8(27, (h - 1) & 255), v.setUint8(28, (h - 1) >> 8))],
  ['AVIF', 'image/avif', avif, (v, w, h) => (v.setUint32(ispe, w), v.setUint32(ispe + 4, h))],
  ['BMP', 'image/bmp', bmp, (v, w, h) => (v.setInt32(18, w, true), v.setInt32(22, -h, true))],
].map(([name, type, file, set]) => ({
  name,
  type,
  file,
  sized: (width, height) => {
    const changed = file.slice();
    set(new DataView(changed.buffer), width, height);
    return changed;
  },
}));
