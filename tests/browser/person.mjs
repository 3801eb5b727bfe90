// What the tests of the playground do to the page, as a person would.
import { join } from 'node:path';
import { root } from '../../scripts/build.mjs';

export const pictures = join(root, 'out', 'playground');

export const check = (condition, text) => {
  if (!condition) throw new Error(text);
};

export class Person {
  constructor(page, base) {
    this.page = page;
    this.base = base;
  }

  async tab(name) {
    await this.page.click(`#tab-${name}`);
    await this.until((id) => !document.getElementById(id).hidden, 10_000, `panel-${name}`);
  }

  /** Waits for `expression` (a function of the page) to hold. */
  until(expression, timeout = 60_000, ...args) {
    return this.page.waitForFunction(expression, { timeout, polling: 50 }, ...args);
  }

  /** A button by its words, within the tab that is shown. */
  async press(text) {
    const button = await this.find('button', text);
    check(!(await button.evaluate((b) => b.disabled)), `the button "${text}" cannot be pressed now`);
    await button.click();
  }

  async find(kind, text) {
    const handle = await this.page.evaluateHandle((k, t) => [...document.querySelectorAll(`[role=tabpanel]:not([hidden]) ${k}`)].find((b) => b.textContent.trim().startsWith(t)), kind, text);
    check(handle.asElement(), `there is no ${kind} "${text}"`);
    return handle.asElement();
  }

  ready(text, timeout = 60_000) {
    return this.until((t) => [...document.querySelectorAll('[role=tabpanel]:not([hidden]) button')].some((b) => b.textContent.trim().startsWith(t) && !b.disabled), timeout, text);
  }

  /** Gives a labelled control a value, as if it was typed or chosen. */
  async fill(label, value) {
    const found = await this.page.evaluate(
      (l, v) => {
        const mark = [...document.querySelectorAll('[role=tabpanel]:not([hidden]) label')].find((e) => e.textContent.trim() === l);
        const control = mark && (document.getElementById(mark.htmlFor) ?? mark.querySelector('input'));
        if (!control) return false;
        const prototype = control instanceof HTMLSelectElement ? HTMLSelectElement : control instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
        if (control.type === 'checkbox') {
          if (control.checked !== v) control.click();
          return true;
        }
        Object.getOwnPropertyDescriptor(prototype.prototype, 'value').set.call(control, v);
        control.dispatchEvent(new Event('input', { bubbles: true }));
        control.dispatchEvent(new Event('change', { bubbles: true }));
        return true;
      },
      label,
      value,
    );
    check(found, `there is no control called "${label}"`);
  }

  /** What a canvas shows: a hash, the share of light pixels and the mean. */
  async canvas(selector) {
    return this.page.evaluate(async (s) => {
      const canvas = document.querySelector(s);
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
      copy.drawImage(canvas, 0, 0);
      const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
      let [sum, light, seen, hash] = [0, 0, 0, 0];
      for (let i = 0; i < data.length; i += 4) {
        hash = (Math.imul(hash, 31) + data[i] + 7 * data[i + 1] + 13 * data[i + 2]) | 0;
        if (data[i + 3] === 0) continue;
        seen += 1;
        sum += data[i];
        if (data[i] > 127) light += 1;
      }
      return { hash, seen, mean: sum / seen, light: light / seen, width: canvas.width, height: canvas.height };
    }, selector);
  }

  /** Waits until a canvas shows what `test` accepts. */
  async canvasWhere(selector, test, what, timeout = 20_000) {
    const end = Date.now() + timeout;
    for (;;) {
      const seen = await this.canvas(selector);
      if (test(seen)) return seen;
      check(Date.now() < end, `${selector} does not show ${what}: ${JSON.stringify(seen)}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  /** Text of the page's first alert, if there is one. */
  alert() {
    return this.page.evaluate(() => document.querySelector('[role=tabpanel]:not([hidden]) [role=alert], main > [role=alert]')?.textContent);
  }

  /** A file that pressing `text` saves. */
  async download(text) {
    await this.page.evaluate(() => {
      window.saved = undefined;
      const { createObjectURL } = URL;
      URL.createObjectURL = (blob) => {
        URL.createObjectURL = createObjectURL;
        window.saved = blob.arrayBuffer().then((b) => Array.from(new Uint8Array(b)));
        return createObjectURL.call(URL, blob);
      };
    });
    await this.press(text);
    await this.until(() => window.saved !== undefined);
    return Buffer.from(await this.page.evaluate(() => window.saved));
  }

  /** A picture of the page. This Chrome does not compose WebGPU's canvases, so copies stand in their places. */
  async picture(name, options = {}) {
    await this.page.evaluate(() => {
      scrollTo(0, 0);
      for (const canvas of document.querySelectorAll('canvas.gpu')) {
        const copy = document.createElement('canvas');
        Object.assign(copy, { width: canvas.width, height: canvas.height, className: 'gpu copy' });
        copy.getContext('2d').drawImage(canvas, 0, 0);
        copy.style.aspectRatio = canvas.style.aspectRatio;
        canvas.after(copy);
        canvas.style.display = 'none';
      }
    });
    await this.page.screenshot({ path: join(pictures, `${name}.png`), ...options });
    await this.page.evaluate(() => {
      for (const copy of document.querySelectorAll('canvas.copy')) copy.remove();
      for (const canvas of document.querySelectorAll('canvas.gpu')) canvas.style.display = '';
    });
  }
}
