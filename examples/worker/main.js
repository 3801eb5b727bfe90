// The page stays free: a worker samples and sends pictures, which are drawn on a 2D canvas.
const canvas = document.querySelector('canvas').getContext('2d');
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
worker.onmessage = ({ data: { image, index, error } }) => {
  if (error) throw new Error(error);
  canvas.putImageData(image, index * image.width, 0);
  if (index === 2) document.title = 'done';
};
worker.postMessage({ labels: [2, 4, 6], steps: 6, scheduler: 'ddim', seed: 7 });
