/** Entry in a page. */
import { urlFolder } from '../../src/io/folder';
import { adapterImages, type AdapterReport } from './images';

declare global {
  interface Window {
    adapterImages: () => Promise<AdapterReport>;
  }
}

window.adapterImages = () => adapterImages(navigator.gpu, (path) => urlFolder(new URL(`/${path}/`, location.href).href));
