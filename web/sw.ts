/**
 * Keeps the page for later visits without a network. `FILES` and `VERSION` are put in by the build; everything is one version or the other, never a mixture.
 */
export {}; // a module of its own to the type checker

declare const FILES: readonly string[];
declare const VERSION: string;

interface WorkerEvent extends Event {
  waitUntil(work: Promise<unknown>): void;
}
interface RequestEvent extends WorkerEvent {
  readonly request: Request;
  respondWith(response: Promise<Response>): void;
}

const cacheName = `bruit-page-${VERSION}`;
// The scope: the page's own folder, wherever it lies.
const base = new URL('./', self.location.href);

self.addEventListener('install', (event) => {
  (event as WorkerEvent).waitUntil(caches.open(cacheName).then((cache) => cache.addAll(FILES.map((file) => new Request(new URL(file, base), { cache: 'reload' })))));
});

self.addEventListener('activate', (event) => {
  const old = async () => Promise.all((await caches.keys()).filter((key) => key.startsWith('bruit-page-') && key !== cacheName).map((key) => caches.delete(key)));
  (event as WorkerEvent).waitUntil(old());
});

self.addEventListener('fetch', (event) => {
  const { request } = event as RequestEvent;
  const url = new URL(request.url);
  if (!['GET', 'HEAD'].includes(request.method) || url.origin !== base.origin || !url.pathname.startsWith(base.pathname)) return;
  const answer = async (): Promise<Response> => {
    const kept = await (await caches.open(cacheName)).match(url.pathname.endsWith('/') ? new URL('index.html', url) : request, { ignoreSearch: true, ignoreMethod: true });
    if (request.method === 'GET') return kept ?? fetch(request);
    // Whether a bundled model has a file is asked without a network, too; one that is not kept is not there.
    return kept ? new Response(null, kept) : fetch(request).catch(() => new Response(null, { status: 504 }));
  };
  (event as RequestEvent).respondWith(answer());
});
