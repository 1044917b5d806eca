/** What a page tells a service worker that waits: become the one in charge now. */
export const TAKE_OVER = 'take-over';
