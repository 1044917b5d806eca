/**
 * Has the service worker keep the site, so that it works without a network after the first visit. Without service
 * workers (an insecure address, a private window) the site works as it did, online.
 *
 * A newer version waits until it is asked for: pages never mix files of two versions.
 */
import { button, el } from './dom.ts';
import { TAKE_OVER } from './take-over.ts';

if (import.meta.env.PROD && window.isSecureContext && 'serviceWorker' in navigator) void keepSite(navigator.serviceWorker);

async function keepSite(container: ServiceWorkerContainer): Promise<void> {
  const updating = container.controller !== null;
  container.addEventListener('controllerchange', () => {
    if (updating) location.reload();
  });
  try {
    const registration = await container.register('./sw.js');
    if (registration.waiting) offer(registration.waiting);
    registration.addEventListener('updatefound', () => {
      const { installing } = registration;
      installing?.addEventListener('statechange', () => {
        if (installing.state === 'installed' && container.controller) offer(installing);
      });
    });
  } catch {
    // Refused or not reachable: this visit needs the network.
  }
}

/** Tells of a newer version, and has it take over when the visitor wants it. */
function offer(waiting: ServiceWorker): void {
  const load = button('Load it', 'newer-version', () => waiting.postMessage(TAKE_OVER), { class: 'link' });
  document.querySelector('footer.site')?.append(el('p', { id: 'newer-version', role: 'status' }, 'A newer version of this site is ready. ', load));
}
