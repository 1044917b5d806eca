/** This package's version. The build, and vitest, put it in. */
declare const PACKAGE_VERSION: string;

export const VERSION: string = PACKAGE_VERSION;
