/**
 * The embedded software adapter: SwiftShader (a Vulkan driver for the CPU) and a Vulkan loader, both taken from the npm
 * package `@sparticuz/chromium`, which ships them as brotli-compressed tar archives for Linux x64.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createBrotliDecompress } from 'node:zlib';
import { extract } from 'tar-fs';
import { BruitError } from '../engine/errors';
import { cachedDirectory, packageDirectory, packageVersion } from './cache';

const carrier = '@sparticuz/chromium';

function archive(name: string): string {
  return join(packageDirectory(carrier), 'bin', name);
}

/** Unpacks an archive `NAME.tar.br` of the carrier package into `directory`; `keep` selects entries by path. */
async function unpack(name: string, directory: string, keep: (path: string) => boolean = () => true): Promise<void> {
  await pipeline(
    createReadStream(archive(name)),
    createBrotliDecompress(),
    extract(directory, {
      ignore: (path) => !keep(path),
      // Run by root, tar-fs would hand the files to the archive's user ids.
      map: (header) => Object.assign(header, { uid: process.getuid?.(), gid: process.getgid?.() }),
    }),
  );
}

function requireLinuxX64(what: string): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new BruitError(
      'device',
      `${what} is bundled for linux x64 only, this is ${process.platform} ${process.arch}: use --adapter gpu` +
        (process.platform === 'linux' ? ', or install Mesa lavapipe and use --adapter lavapipe' : ''),
    );
  }
}

/** Unpacked Vulkan software driver: `directory` also holds the loader `libvulkan.so.1`; `icd` is the driver's manifest. */
export interface VulkanDriver {
  directory: string;
  icd: string;
}

/** Unpacks SwiftShader and the Vulkan loader into the cache (once, about 7 MB). Throws `BruitError('device')` off linux x64. */
export async function swiftshader(): Promise<VulkanDriver> {
  requireLinuxX64('the embedded software adapter (SwiftShader)');
  const manifest = 'vk_swiftshader_icd.json';
  const directory = await cachedDirectory(`swiftshader-${packageVersion(carrier)}`, (into) =>
    // Chrome's libEGL and libGLESv2 lie in the same archive; on LD_LIBRARY_PATH they would shadow the system's.
    unpack('swiftshader.tar.br', into, (path) => !/lib(EGL|GLESv2)\.so/.test(path)),
  );
  // The manifest stays relative (`./libvk_swiftshader.so`, which the loader resolves against the manifest's own
  // directory), so the cache survives moving the project.
  return { directory, icd: join(directory, manifest) };
}

/** Unpacked headless Chrome: the executable and the directory with shared libraries that a bare system lacks. */
export interface EmbeddedChrome {
  executable: string;
  libraries: string;
}

/** Unpacks the headless Chrome of the same package into the cache (once, about 190 MB), for tests in a browser. */
export async function embeddedChrome(): Promise<EmbeddedChrome> {
  requireLinuxX64('headless Chrome');
  const directory = await cachedDirectory(`chrome-${packageVersion(carrier)}`, async (into) => {
    const executable = join(into, 'chrome');
    await pipeline(createReadStream(archive('chromium.br')), createBrotliDecompress(), createWriteStream(executable));
    await chmod(executable, 0o755);
    // SwiftShader and ANGLE must lie beside the executable; NSS and its kin come in `lib/`.
    await unpack('swiftshader.tar.br', into);
    await unpack('al2023.tar.br', into);
    await unpack('fonts.tar.br', into);
  });
  return { executable: join(directory, 'chrome'), libraries: join(directory, 'lib') };
}
