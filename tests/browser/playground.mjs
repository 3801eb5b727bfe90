// The playground end to end, in headless Chrome, as a person would use it: node tests/browser/playground.mjs [FILTER]. Pictures go to out/playground/.
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { strFromU8, strToU8, unzipSync, zipSync } from 'fflate';
import { root } from '../../scripts/build.mjs';
import { launchChrome } from '../../scripts/chrome.mjs';
import { buildWeb, serveWeb, webDirectory } from '../../scripts/web.mjs';
import { check, Person, pictures } from './person.mjs';
import { trust } from './playground_trust.mjs';

const { decode } = createRequire(import.meta.url)('fast-png');

const tests = {
  async 'sample: digits appear, live, and the same seed gives the same picture'(person) {
    await person.ready('Save PNG', 90_000); // the first run begins by itself
    await person.fill('Steps', '6');
    await person.fill('Images', '4');
    // The worker computes, and while it draws, nothing comes back from the GPU; the page has no part in it.
    const [worker] = person.page.workers();
    await worker.evaluate(() => {
      const { mapAsync } = globalThis.GPUBuffer.prototype;
      globalThis.readBacks = 0;
      globalThis.GPUBuffer.prototype.mapAsync = function (...rest) {
        globalThis.readBacks++;
        return mapAsync.apply(this, rest);
      };
    });
    await person.press('Sample');
    await person.until(() => /step \d+ of 6/.test(document.querySelector('figcaption').textContent));
    await person.ready('Save PNG');
    check((await worker.evaluate(() => globalThis.readBacks)) === 0, 'pictures were read back from the GPU');
    check(!/createComputePipeline|requestAdapter/.test(await readFile(join(webDirectory, 'main.js'), 'utf8')), 'the page itself uses the GPU');
    const first = await person.canvasWhere('#panel-sample canvas', (c) => c.mean > 5 && c.mean < 120 && c.light > 0.02 && c.light < 0.4, 'white strokes on black');
    await person.press('Sample');
    await person.ready('Save PNG');
    const again = await person.canvas('#panel-sample canvas');
    check(again.hash === first.hash, 'the same seed gave another picture');
    await person.fill('Seed', '8');
    await person.press('Sample');
    await person.ready('Save PNG');
    await person.canvasWhere('#panel-sample canvas', (c) => c.hash !== first.hash, 'another picture for another seed');
  },

  async 'sample: scrubbing shows noise at the start, ε and the predicted x0'(person) {
    const end = await person.canvas('#panel-sample canvas');
    await person.press('xt');
    await person.page.$eval('input[aria-label="Step of the trajectory"]', (e) => {
      e.value = '0';
      e.dispatchEvent(new Event('input', { bubbles: true }));
    });
    await person.until(() => /^step0 of 6/.test(document.querySelector('.readout').textContent));
    const noise = await person.canvasWhere('#panel-sample canvas', (c) => c.hash !== end.hash && c.mean > 90 && c.mean < 165, 'noise around grey');
    await person.press('ε');
    await person.canvasWhere('#panel-sample canvas', (c) => c.hash !== noise.hash, 'ε');
    const snr = await person.page.$eval('.readout', (e) => e.textContent);
    check(/SNR[\d.e+-]+/.test(snr), `no SNR in "${snr}"`);
    await person.press('predicted x0');
  },

  async 'sample: a PNG that says what made it, a GIF and a WebM'(person) {
    const png = await person.download('Save PNG');
    // That does: the counter counts.
    check((await person.page.workers()[0].evaluate(() => globalThis.readBacks)) > 0, 'read-backs are not counted');
    const { text } = decode(png);
    const made = JSON.parse(text.parameters);
    check(made.seed === 8 && made.steps === 6 && made.scheduler === 'DDIMScheduler', `parameters ${text.parameters}`);
    const gif = await person.download('Save trajectory as GIF');
    // Every frame, as the browser decodes it: six steps and the result, of one size; the first is what the canvas shows since it was scrubbed to the start.
    const animation = await person.page.evaluate(async (bytes) => {
      const decoder = new globalThis.ImageDecoder({ data: new Uint8Array(bytes), type: 'image/gif' });
      await Promise.all([decoder.tracks.ready, decoder.completed]);
      const { frameCount } = decoder.tracks.selectedTrack;
      const frames = [];
      for (let frameIndex = 0; frameIndex < frameCount; frameIndex++) {
        const { image } = await decoder.decode({ frameIndex });
        const { displayWidth: width, displayHeight: height } = image;
        const context = new OffscreenCanvas(width, height).getContext('2d');
        context.drawImage(image, 0, 0);
        frames.push({ width, height, milliseconds: image.duration / 1000, data: context.getImageData(0, 0, width, height).data });
        image.close();
      }
      // Four images in a square; the canvas has its gaps and its zoom, the file others: pixels are compared at the same places of the same images.
      const canvas = document.querySelector('#panel-sample canvas');
      const shown = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
      shown.drawImage(canvas, 0, 0);
      const { data } = shown.getImageData(0, 0, canvas.width, canvas.height);
      const at = (pixels, side, gap, around, image, u, v) => {
        const each = (side - gap - 2 * around) / 2;
        const x = Math.floor(around + (image % 2) * (each + gap) + (u + 0.5) * (each / 28));
        const y = Math.floor(around + (image >> 1) * (each + gap) + (v + 0.5) * (each / 28));
        return pixels[4 * (y * side + x)];
      };
      const difference = (frame) => {
        let sum = 0;
        for (let image = 0; image < 4; image++) for (let v = 0; v < 28; v++) for (let u = 0; u < 28; u++) sum += Math.abs(at(frame.data, frame.width, 2, 2, image, u, v) - at(data, canvas.width, 4, 0, image, u, v));
        return sum / (4 * 28 * 28);
      };
      return { sizes: frames.map(({ width, height }) => `${width}x${height}`), times: frames.map((f) => f.milliseconds), first: difference(frames[0]), last: difference(frames.at(-1)) };
    }, [...gif]);
    check(gif.toString('latin1', 0, 6) === 'GIF89a' && animation.sizes.length === 7 && new Set(animation.sizes).size === 1, `the GIF has frames of ${animation.sizes}`);
    check(animation.times.slice(0, 6).every((t) => t === 80) && animation.times[6] === 2000, `frames are shown for ${animation.times} ms`);
    check(animation.first < 4 && animation.last > 15, `mean differences to the canvas: ${animation.last} of the last frame, ${animation.first} of the first`);
    await person.ready('Save trajectory as WebM');
    const webm = await person.download('Save trajectory as WebM');
    check(webm.readUInt32BE(0) === 0x1a45dfa3 && webm.includes('webm') && /V_VP[89]/.test(webm.toString('latin1')), 'no WebM');
    // The browser plays what it recorded: the size of the grid, and its end is the picture on the canvas, white strokes on black.
    const cinema = await person.page.browser().newPage(); // the page's own policy lets it load no films
    const film = await cinema.evaluate(async (bytes) => {
      const video = Object.assign(document.createElement('video'), { muted: true, src: URL.createObjectURL(new globalThis.Blob([new Uint8Array(bytes)], { type: 'video/webm' })) });
      await new Promise((resolve, reject) => Object.assign(video, { onended: resolve, onerror: () => reject(new Error(video.error.message)) }).play().catch(reject));
      const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight).getContext('2d');
      canvas.drawImage(video, 0, 0);
      const { data } = canvas.getImageData(0, 0, video.videoWidth, video.videoHeight);
      let sum = 0;
      for (let i = 0; i < data.length; i += 4) sum += data[i];
      return { width: video.videoWidth, height: video.videoHeight, mean: (4 * sum) / data.length, duration: video.currentTime };
    }, [...webm]);
    await cinema.close();
    await person.page.bringToFront();
    check(film.width >= 100 && film.width === film.height && film.duration > 1 && film.mean > 5 && film.mean < 130, `the film: ${JSON.stringify(film)}`);
  },

  async 'sample: two schedulers side by side, a walk between seeds'(person) {
    await person.fill('Compare with', 'dpmpp');
    await person.fill('Walk to another seed', true);
    await person.press('Sample');
    await person.until(() => document.querySelectorAll('#panel-sample canvas').length === 2);
    await person.until(() => [...document.querySelectorAll('#panel-sample figcaption')].every((c) => /evaluations/.test(c.textContent)));
    const [a, b] = [await person.canvas('#panel-sample figure:first-child canvas'), await person.canvasWhere('#panel-sample figure:last-child canvas', (c) => c.seen > 0 && c.light > 0.02, 'digits')];
    check(a.hash !== b.hash, 'two schedulers gave one picture');
    await person.picture('sample');
    await person.fill('Compare with', 'none');
    await person.fill('Walk to another seed', false);
  },

  async 'sample: models of classes over latents, latent models without, and those that the page does not know'(person) {
    for (const [name, words, control] of [['dit', 'DiTPipeline', '.chips, input[type=text]'], ['ldm', 'LDMPipeline', undefined]]) {
      await person.fill('From', 'url');
      await person.fill('Address of the folder', `${person.base}/goldens/pipeline_${name}_tiny`);
      await person.press('Look at it first');
      await person.ready('Download and load');
      check((await person.page.$eval('.plan', (e) => e.textContent)).includes(words), `the plan does not name ${words}`);
      await person.press('Download and load');
await person.until(() => !document.querySelector('#panel-sample .plan'));
      await person.ready('Save PNG', 90_000);
      await person.canvasWhere('#panel-sample canvas', (c) => c.seen > 0, `an image by ${words}`);
      if (control) check(await person.page.$(`#panel-sample ${control}`), 'a model with classes has no labels to choose');
      const { text } = decode(await person.download('Save PNG'));
      check(JSON.parse(text.parameters).model.includes(name), `parameters ${text.parameters}`);
    }
    await person.fill('Address of the folder', `${person.base}/goldens/pipeline_if_tiny/stage1`);
    await person.press('Look at it first');
    await person.until(() => /names IFPipeline/.test(document.querySelector('.plan [role=alert]')?.textContent ?? ''));
  },

  async 'sample: the bundled text-to-image model draws what the prompt says'(person) {
    await person.tab('sample');
    await person.fill('From', 'scenes');
    await person.until(() => /bundled scenes/.test(document.querySelector('#panel-sample').textContent), 60_000);
    await person.ready('Sample');
    await person.fill('Prompt', 'a thick slanted four');
    await person.press('Sample');
    await person.ready('Save PNG', 90_000);
    await person.canvasWhere('#panel-sample canvas', (c) => c.seen > 0, 'pictures of the prompt');
    const parameters = JSON.parse(decode(await person.download('Save PNG')).text.parameters);
    check(parameters.prompt === 'a thick slanted four' && parameters.guidance === 2, `parameters ${JSON.stringify(parameters)}`);
    await person.picture('scenes');
    await person.fill('From', 'digits');
    await person.until(() => document.querySelector('.chips'), 30_000);
    await person.ready('Save PNG', 90_000);
  },

  async 'sample: a folder by its address, with its needs first; bad addresses are told in words'(person) {
    await person.fill('From', 'url');
    await person.fill('Address of the folder', `${person.base}/goldens/pipeline_sd_tiny`);
    await person.press('Look at it first');
    await person.ready('Download and load');
    check(/StableDiffusionPipeline/.test(await person.page.$eval('.plan', (e) => e.textContent)), 'the plan does not name the pipeline');
    await person.press('Download and load');
    await person.until(() => document.querySelector('textarea'));
    await person.ready('Save PNG', 90_000);
    await person.canvasWhere('#panel-sample canvas', (c) => c.seen > 0, 'an image of the prompt');
    await person.fill('From', 'hub');
    await person.fill('Id on the Hub', 'no id');
    await person.press('Look at it first');
    await person.until(() => document.querySelector('#panel-sample [role=alert]'));
    check(/owner\/name/.test(await person.alert()), `the alert says "${await person.alert()}"`);
    await person.fill('From', 'digits');
    await person.until(() => document.querySelector('.chips'), 30_000);
    await person.ready('Save PNG', 90_000);
  },

  async 'train: learns, pauses, is saved, carries on after a reload'(person) {
    const { page } = person;
    await person.tab('train');
    await person.ready('Train');
    await person.fill('Steps of training', '10');
    await person.fill('Batch', '4');
    await person.fill('Picture and checkpoint every', '5');
    await person.press('Train');
    await person.until(() => /step \d+ of 10/.test(document.querySelector('#panel-train .stage')?.textContent ?? ''), 120_000);
    await person.press('Pause');
    await person.ready('Resume');
    await person.until(() => /Kept in this browser at step \d/.test(document.querySelector('#panel-train').textContent));
    const at = await page.evaluate(() => Number(/at step (\d+)/.exec(document.querySelector('#panel-train').textContent)[1]));
    check(at > 0 && at < 10, `paused at step ${at}`);
    await page.reload({ waitUntil: 'load' });
    await person.tab('train');
    await person.ready('Carry on', 90_000);
    check((await page.$eval('#panel-train .plan', (e) => e.textContent)).includes(`step ${at} of 10`), 'another step was stored');
    await person.press('Carry on');
    await person.until(() => /step 10 of 10/.test(document.querySelector('#panel-train .stage').textContent), 120_000);
    await person.ready('Save checkpoint');
    await person.canvasWhere('#panel-train canvas.gpu', (c) => c.seen > 1000, 'samples');
    check((await page.$$('#panel-train .plots .uplot canvas')).length === 3, 'loss, gradient norm and learning rate are not plotted');
    await person.picture('train');
    const zip = await person.download('Save checkpoint');
    const files = unzipSync(zip);
    check(JSON.parse(strFromU8(files['trainer_state.json'])).step === 10, 'the checkpoint is not of step 10');
    const rows = strFromU8(files['metrics.jsonl']).trim().split('\n').map(JSON.parse);
    check(rows.length === 10 && rows.every((r, i) => r.step === i && Number.isFinite(r.loss) && r.gradNorm > 0), 'metrics of ten steps are missing');
    await person.press('Sample with it');
    await person.until(() => /this run, step 10/.test(document.querySelector('#panel-sample').textContent));
    // The file by itself goes on where it stood: two steps more, packed again as another program might.
    const recipe = JSON.parse(strFromU8(files['recipe.json']));
    recipe.train.steps = 12;
    const folder = await mkdtemp(join(tmpdir(), 'bruit-run-'));
    await writeFile(join(folder, 'run.zip'), zipSync({ ...files, 'recipe.json': strToU8(JSON.stringify(recipe)) }, { level: 6 }));
    await person.tab('train');
    await (await page.$('#panel-train input[accept=".zip"]')).uploadFile(join(folder, 'run.zip'));
    await person.until(() => /step 12 of 12/.test(document.querySelector('#panel-train .stage').textContent), 120_000);
    await person.ready('Save checkpoint');
    await rm(folder, { recursive: true });
    const more = strFromU8(unzipSync(await person.download('Save checkpoint'))['metrics.jsonl']).trim().split('\n').map(JSON.parse);
    check(more.length === 12 && rows.every((r, i) => r.loss === more[i].loss) && more[11].step === 11, `the run from a file has ${more.length} rows`);
  },

  async 'train: images that are dropped'(person) {
    const { page } = person;
    await person.tab('train');
    await person.press('Your images');
    await page.evaluate(async () => {
      const transfer = new DataTransfer();
      for (let i = 0; i < 6; i++) {
        const canvas = new OffscreenCanvas(50, 40);
        const context = canvas.getContext('2d');
        context.fillStyle = `hsl(${i * 60} 80% 50%)`;
        context.fillRect(5 * i, 5, 20, 20);
        transfer.items.add(new File([await canvas.convertToBlob()], `${i}.png`, { type: 'image/png' }));
      }
      document.querySelector('.drop').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
    });
    await person.until(() => /6 pictures/.test(document.querySelector('#panel-train').textContent));
    await person.fill('Steps of training', '15');
    await person.fill('Batch', '2');
    await person.ready('Train');
    await person.press('Train');
    await person.until(() => /6 images of images/.test(document.querySelector('#panel-train .stage').textContent), 120_000);
    await person.press('Pause');
    await person.ready('Resume');
    await person.press('Resume');
    await person.until(() => /step 15 of 15/.test(document.querySelector('#panel-train .stage').textContent), 120_000);
    await person.ready('Save checkpoint');
  },

  async 'inside: kernels, their text, times, layers, attention, weights, memory'(person) {
    const { page } = person;
    await person.tab('inside');
    await person.until(() => document.querySelectorAll('.dispatch').length > 50, 90_000);
    const convolution = await person.canvasWhere('#panel-inside canvas.gpu', (c) => c.seen > 1000, 'feature maps');
    const text = await page.$eval('#panel-inside pre', (e) => e.textContent);
    check(/@compute/.test(text) && /fn \w+\(/.test(text), 'no WGSL');
    check((await page.$$('#panel-inside tbody tr')).length >= 3, 'no bindings');
    await person.press('Next kernel');
    await person.canvasWhere('#panel-inside canvas.gpu', (c) => c.hash !== convolution.hash, 'what the next kernel writes');
    await person.press('Time every kernel');
    await person.until(() => /of peak arithmetic|gives no timestamps/.test(document.querySelector('#panel-inside').textContent), 90_000);
    await person.picture('inside');
    await person.press('Layers');
    await person.until(() => /Attention of \d+ heads/.test(document.querySelector('#panel-inside').textContent), 90_000);
    await person.canvasWhere('#panel-inside figure:not([hidden]):nth-of-type(2) canvas.gpu', (c) => c.seen > 100, 'attention maps');
    await person.picture('inside-layers');
    const { norm_num_groups: groups } = JSON.parse(await readFile(join(root, 'models', 'digits', 'unet', 'config.json'), 'utf8'));
    await (await person.find('.list button', 'down_blocks.2.attentions.0.group_norm')).click();
    await person.until(() => /What the group norm saw/.test(document.querySelector('#panel-inside').textContent), 60_000);
    const [means, deviations] = await page.$$eval('#panel-inside .detail tbody tr', (rows) => rows.map((row) => [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent))));
    check(means.length === groups && deviations.length === groups && means.every(Number.isFinite) && deviations.every((d) => d > 0), `statistics of ${groups} groups: ${means}; ${deviations}`);
    await person.press('Weights');
    await person.canvasWhere('#panel-inside canvas.gpu', (c) => c.seen > 100, 'weights');
    await person.press('Memory');
    await person.until(() => document.querySelectorAll('.life').length > 20);
    await person.picture('inside-memory');
  },

  async 'tour: every experiment answers'(person) {
    const { page } = person;
    await person.tab('tour');
    await person.until(() => document.querySelectorAll('.experiment').length === 12 && document.querySelectorAll('.tour math').length > 20);
    await person.fill('Steps of the chain', '30');
    await person.press('Add noise');
    await person.until(() => /: equal in distribution/.test(document.querySelector('.verdict')?.textContent ?? ''), 60_000);
    await person.fill('the same noise in every step', true);
    await person.press('Add noise');
    await person.until(() => /: not equal in distribution/.test(document.querySelector('.verdict').textContent), 60_000);
    await person.press('Go back');
    await person.canvasWhere('#experiment-reverse canvas:last-child', (c) => c.seen > 1000 && c.mean < 120, 'a strip of guesses', 60_000);
    await person.press('Ask the model');
    await person.canvasWhere('#experiment-prediction canvas', (c) => c.seen > 1000, 'predictions', 60_000);
    await person.press('Transformer');
    await person.until(() => /dispatches\d+/.test(document.querySelector('#experiment-denoiser').textContent));
    await person.press('Guide');
    await person.canvasWhere('#experiment-guidance canvas', (c) => c.seen > 1000, 'guided digits', 60_000);
    // Another shape while it trains: the batches that come are of it.
    await person.press('Train from nothing');
    await person.until(() => /step \d+, on the spiral/.test(document.querySelector('#experiment-training').textContent), 90_000);
    await person.press('Ring');
    await person.until(() => /step 1[0-4]?\d, on the ring|step 150, on the ring/.test(document.querySelector('#experiment-training').textContent), 90_000);
    await person.ready('Train from nothing', 60_000);
    await person.press('Spiral');
    await person.press('Train from nothing');
    await person.until(() => /step 150, on the spiral/.test(document.querySelector('#experiment-training').textContent), 90_000);
    await person.ready('More steps', 60_000);
    await person.fill('Steps', '5');
    await person.press('Race');
    await person.until(() => /UniPC: \d/.test(document.querySelector('#experiment-sampling').textContent), 90_000);
    const distances = await page.$eval('#experiment-sampling', (e) => [...e.textContent.matchAll(/: (\d+\.\d+)/g)].map((m) => Number(m[1])));
    check(distances.length === 5 && distances.every((d) => d < 0.7), `samples lie far from the data: ${distances}`);
    // What part 9 says of smoothness and of the data, seen: steps that are too large miss the shape, and another shape takes the place of the one that was learnt.
    await person.fill('Steps', '2');
    await person.press('Race');
    await person.until(() => !/UniPC: \d/.test(document.querySelector('#experiment-sampling').textContent));
    await person.until(() => /UniPC: \d/.test(document.querySelector('#experiment-sampling').textContent), 90_000);
    const few = await page.$eval('#experiment-sampling', (e) => [...e.textContent.matchAll(/: (\d+\.\d+)/g)].map((m) => Number(m[1])));
    check(few.length === 5 && few.every((d, i) => d > 1.1 * distances[i]), `with two steps the distances are ${few}, with five ${distances}`);
    const learnt = await person.canvas('#experiment-training canvas.points');
    await person.press('Ring');
    await person.press('More steps');
    await person.until(() => /step 300/.test(document.querySelector('#experiment-training').textContent), 90_000);
    await person.ready('More steps', 60_000);
    await person.canvasWhere('#experiment-training canvas.points', (c) => c.hash !== learnt.hash, 'what becomes of one shape when another is trained');
    // Part 9: each assumption, kept and broken.
    await person.fill('What a step’s noise keeps of the one before', '0');
    await person.press('Add noise with memory');
    await person.until(() => /: the closed form holds/.test(document.querySelector('#experiment-memory .verdict')?.textContent ?? ''), 60_000);
    await person.fill('What a step’s noise keeps of the one before', '0.9');
    await person.press('Add noise with memory');
    await person.until(() => /: the closed form is wrong/.test(document.querySelector('#experiment-memory .verdict').textContent), 60_000);
    const wide = await page.$eval('#experiment-memory .verdict', (e) => Number(/deviation (\S+)/.exec(e.textContent)[1]));
    check(wide > 2, `noise with memory has a standard deviation of ${wide}`);
    await person.press('Train on both');
    await person.until(() => /data that move: .*behind the data/.test(document.querySelector('#experiment-drift').textContent), 90_000);
    const [stays, moves] = await page.$eval('#experiment-drift', (e) => [...e.textContent.matchAll(/are (-?[\d.]+) behind/g)].map((m) => Number(m[1])));
    check(Math.abs(stays) < 0.1 && moves > 0.15, `samples are ${stays} behind data that stay and ${moves} behind data that move`);
    await person.press('Train on two islands');
    await person.until(() => /50 steps: /.test(document.querySelector('#experiment-jump').textContent), 90_000);
    const between = await page.$eval('#experiment-jump', (e) => [...e.textContent.matchAll(/: ([\d.]+)% in between/g)].map((m) => Number(m[1])));
    check(between.length === 3 && between[0] > 5 && between[0] > 1.5 * between[2], `in 3, 10 and 50 steps ${between}% of the points are between the islands`);
    await person.press('Show the kernel');
    await person.until(() => document.querySelector('#experiment-kernel mark'), 60_000);
    await page.evaluate(() => globalThis.scrollTo(0, 0));
    await person.picture('tour', { fullPage: true });
  },

  async 'bench: measures, draws a roofline, gives JSON and a table'(person) {
    const { page } = person;
    await person.tab('bench');
    await person.ready('Measure');
    const names = await page.$$eval('#panel-bench label.check', (all) => all.map((e) => e.textContent.trim()));
    // Whichever of these `npm run bench:peers` has installed.
    const peers = names.filter((name) => /^(tfjs|jax-js) \d/.test(name));
    const wanted = ['matmul 256³', 'group norm + SiLU, 4×128×32×32', ...peers];
    for (const name of names) if (!name.startsWith('bruit')) await person.fill(name, wanted.includes(name));
    await person.fill('Seconds a row and engine', '0.1');
    await person.press('Measure');
    await person.ready('Save JSON', 90_000 * (1 + peers.length));
    check((await page.$$('#panel-bench .roofline circle')).length === 2, 'the roofline lacks points');
    const { results, peak } = JSON.parse(await person.download('Save JSON'));
    const right = (r) => r.ms > 0 && (r.engine === 'bruit' ? r.difference === 0 : r.difference < 1e-4);
    check(results.length === 2 * (1 + peers.length) && results.every(right) && peak.f32 > 1e8, `results ${JSON.stringify(results)}`);
    if (peers.length === 0) console.log('no peer of the Bench tab is installed (npm run bench:peers): bruit ran alone');
    const table = await page.$eval('#panel-bench textarea', (e) => e.value);
    check(table.split('\n').length === 6 && table.includes('| matmul 256³ |'), `table ${table}`);
    await person.picture('bench');
  },

  async 'page: keyboard, names of controls, dark, phone, offline'(person) {
    const { page } = person;
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll('button, input, select, textarea, canvas.gpu')]
        .filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
        .map((e) => e.outerHTML.slice(0, 80)),
    );
    check(nameless.length === 0, `without a name: ${nameless}`);
    await person.tab('sample');
    await page.focus('#tab-sample');
    for (const [key, name] of [['ArrowRight', 'train'], ['ArrowRight', 'inside'], ['ArrowLeft', 'train'], ['Home', 'sample']]) {
      await page.keyboard.press(key);
      await person.until((id) => !document.getElementById(`panel-${id}`).hidden && document.activeElement.id === `tab-${id}`, 10_000, name);
    }
    // From the tabs on, each key press reaches a control of the open tab.
    const reached = [];
    for (let i = 0; i < 6; i++) {
      await page.keyboard.press('Tab');
      reached.push(await page.evaluate(() => Boolean(document.activeElement.closest('#panel-sample'))));
    }
    check(reached.every(Boolean), `the keyboard leaves the tab: ${reached}`);
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
    await person.tab('sample');
    await person.picture('sample-dark');
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);
    await page.setViewport({ width: 390, height: 844 });
    for (const name of await page.$$eval('[role=tab]', (all) => all.map((e) => e.id.slice(4)))) {
      await person.tab(name);
      await new Promise((resolve) => setTimeout(resolve, 200));
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      check(wide <= 390, `tab ${name} is ${wide} pixels wide on a phone of 390`);
      await person.picture(`phone-${name}`, { fullPage: true });
    }
    await page.setViewport({ width: 1280, height: 900 });
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    await page.setOfflineMode(true);
    await page.reload({ waitUntil: 'load' });
    await person.tab('sample');
    await person.ready('Save PNG', 90_000);
    await person.fill('From', 'scenes');
    await person.until(() => /bundled scenes: |bundled scenes, /.test(document.querySelector('#panel-sample form').innerText), 60_000);
    await page.setOfflineMode(false);
  },
};

/** Runs the tests; calls `onResult({ name, ok, error?, milliseconds })` as results arrive and resolves with the counts, or `{ skipped: reason }`. */
export async function runPlayground(onResult = () => {}, filter = '') {
  const counts = { passed: 0, failed: 0 };
  await rm(pictures, { recursive: true, force: true });
  await mkdir(pictures, { recursive: true });
  await buildWeb();
  let browser;
  try {
    browser = await launchChrome({ canvas: true });
  } catch (error) {
    if (error.name === 'BruitError') return { skipped: error.message };
    throw error;
  }
  // Below a path of its own: nothing may ask for the server's root.
  const server = await serveWeb({ prefix: '/play/', mounts: { '/goldens/': join(root, 'tests', 'goldens') } });
  const page = await browser.newPage();
  await page.setViewport({ width: 1280, height: 900 });
  const broken = [];
  page.on('pageerror', (error) => broken.push(`page error: ${error.message}`));
  page.on('console', (line) => {
    if (line.type() === 'error') broken.push(line.text());
  });
  const person = new Person(page, server.url);
  try {
    await page.goto(`${server.url}/play/`, { waitUntil: 'load' });
    for (const [name, test] of Object.entries({ ...tests, ...trust })) {
      if (!name.includes(filter)) continue;
      const start = performance.now();
      let error;
      try {
        await test(person);
        // Models lack files that are looked for; the browser reports each 404 as an error of its own.
        const real = broken.filter((text) => !/404 \(Not Found\)/.test(text));
        check(real.length === 0, real.join('\n'));
      } catch (e) {
        error = `${e.stack}\nThe page says: ${await person.alert().catch(() => 'nothing')}${broken.length ? `\n${broken.join('\n')}` : ''}`;
        await person.picture(`failed-${name.replace(/\W+/g, '-').slice(0, 40)}`, { fullPage: true }).catch(() => undefined);
      }
      broken.length = 0;
      counts[error ? 'failed' : 'passed'] += 1;
      onResult({ name, ok: !error, error, milliseconds: performance.now() - start });
    }
  } finally {
    await browser.close();
    await server.close();
  }
  return counts;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const counts = await runPlayground(({ name, ok, error, milliseconds }) => console.log(`${ok ? 'ok  ' : 'FAIL'} ${name} (${milliseconds.toFixed(0)} ms)${error ? `\n${error}` : ''}`), process.argv[2]);
  console.log(counts.skipped ? `skipped: ${counts.skipped}` : `${counts.passed} passed, ${counts.failed} failed`);
  process.exitCode = counts.failed ? 1 : 0;
}
