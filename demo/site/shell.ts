/** A plugin for Vite: gives every page the head, the navigation and the footer that all share. */
import { basename } from 'node:path';
import type { Plugin } from 'vite';
import { PAGES } from './pages.ts';

/** Tags of the head. One that a page has itself (seen by `mark`) stays as it is there. */
const HEAD = [
  { mark: '<meta charset', tag: '<meta charset="utf-8">' },
  { mark: 'name="viewport"', tag: '<meta name="viewport" content="width=device-width, initial-scale=1">' },
  { mark: 'name="color-scheme"', tag: '<meta name="color-scheme" content="light dark">' },
  { mark: 'rel="icon"', tag: '<link rel="icon" type="image/svg+xml" href="./site/icon.svg">' },
  { mark: 'site/style.css', tag: '<link rel="stylesheet" href="./site/style.css">' },
  { mark: 'site/offline.ts', tag: '<script type="module" src="./site/offline.ts"></script>' },
] as const;

const FOOTER = `<footer class="site">
    <p><a href="https://www.npmjs.com/package/flashmla-web">Documentation</a></p>
    <p>Use it in a program of yours: <code>npm install flashmla-web</code></p>
  </footer>`;

export function shell(): Plugin {
  return {
    name: 'site-shell',
    // Before Vite looks for what the page loads.
    transformIndexHtml: { order: 'pre', handler: (html, { filename }) => dressPage(html, basename(filename)) },
  };
}

/** `<nav class="site">` is filled, and put first in the body where there is none; the footer goes last, unless the page has one. */
export function dressPage(html: string, file: string): string {
  const head = HEAD.filter(({ mark }) => !html.includes(mark)).map(({ tag }) => `  ${tag}\n`).join('');
  const withHead = html.replace(/<head>\s*\n/, `$&${head}`);
  const nav = `<nav class="site" aria-label="Pages">${PAGES.map((page) =>
    `\n    <a href="./${page.file}"${page.file === file ? ' aria-current="page"' : ''}>${page.name}</a>`).join('')}\n  </nav>`;
  const placeholder = /<nav class="site"[^>]*>[\s\S]*?<\/nav>/;
  const withNav = placeholder.test(withHead) ? withHead.replace(placeholder, nav) : withHead.replace(/<body[^>]*>/, `$&\n  ${nav}`);
  return /<footer class="site"/.test(withNav) ? withNav : withNav.replace('</body>', `  ${FOOTER}\n</body>`);
}
