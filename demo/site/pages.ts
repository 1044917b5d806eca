/** The pages of the site, in the order of its navigation. */
export const PAGES = [
  { file: 'index.html', name: 'Generate' },
  { file: 'kernel.html', name: 'Kernel' },
  { file: 'how.html', name: 'How it works' },
] as const;
