// For machines without Vulkan: once a loader is in the process, Dawn finds it by its name.
import koffi from 'koffi';

koffi.load(process.env.FLASHMLA_LIBVULKAN, { global: true, lazy: false });
