// For machines without Vulkan: once a loader is in the process, Dawn finds it by its name.
import koffi from 'koffi';

// Exported so that it is referred to for good: koffi unloads a library that nothing refers to.
export const loader = koffi.load(process.env.FLASHMLA_LIBVULKAN, { global: true, lazy: false });
