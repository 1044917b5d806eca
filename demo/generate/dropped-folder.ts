/** The files of a folder that was dropped on the page or chosen in a dialog: those that a model may consist of, with their paths. */
export type PathFile = readonly [path: string, file: File];

const OF_MODELS = /\.(json|safetensors)$/;

export function chosenFiles(files: FileList): PathFile[] {
  return [...files].map((file) => [file.webkitRelativePath || file.name, file] as const).filter(([path]) => OF_MODELS.test(path));
}

/** Call it while the drop is being handled: the browser forgets the items after that. */
export async function droppedFiles({ items }: DataTransfer): Promise<PathFile[]> {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry: FileSystemEntry): Promise<PathFile[]> {
  const path = entry.fullPath.replace(/^\//, '');
  if (entry.isFile) {
    if (!OF_MODELS.test(path)) return [];
    return [[path, await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))]];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: PathFile[] = [];
  for (;;) {
    // A hundred at a time.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
