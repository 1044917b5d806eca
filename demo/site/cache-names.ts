/** Names in the Cache API, which pages and the service worker share. */

/** The model's files, put there by the page that fetches them. */
export const MODEL_CACHE = 'flashmla-model';
/** Where those files lie, relative to the site. */
export const MODEL_FOLDER = 'model/';
/** Before the hash of a build, whose files the cache holds. */
export const SITE_CACHES = 'flashmla-site-';
