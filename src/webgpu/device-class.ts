/**
 * What WebGPU does not tell of a device, by its vendor and architecture as adapters name them. Where nothing is tuned, kernels and schedule are
 * chosen by it. NVIDIA's are measured on an H200, which Dawn gives no architecture; the others are put together from what makers say of their cores and
 * registers, for the middle of a range of products, and what a class gets wrong the tuner finds out. Pure.
 */
export interface DeviceClass {
  /** Workgroups of 16 rows that it runs at once, and is worth cutting the work into. */
  readonly slots: number;
  /** Sums that a thread is let hold in registers beside all else. */
  readonly sums: number;
  /** The most threads of a workgroup. */
  readonly threads: number;
}

const MANY = { sums: Infinity, threads: Infinity } as const;
/** 256 registers a thread. */
const HALF = { sums: 144, threads: 256 } as const;
const FEW = { sums: 96, threads: 256 } as const;

/** The first pattern that an architecture begins with. */
const CLASSES: Readonly<Record<string, readonly (readonly [architecture: RegExp, DeviceClass])[]>> = {
  // Four workgroups a multiprocessor.
  nvidia: [
    [/^(kepler|maxwell|pascal)/, { slots: 80, ...MANY }], [/^turing/, { slots: 160, ...MANY }], [/^(ampere|lovelace|ada)/, { slots: 320, ...MANY }],
    [/^/, { slots: 528, ...MANY }],
  ],
  amd: [[/^cdna/, { slots: 440, ...HALF }], [/^gcn/, { slots: 144, ...HALF }], [/^/, { slots: 264, ...HALF }]],
  // Integrated ones have 3 to 8 cores, cards up to 32.
  intel: [[/^(gen-12hp|xe-2hpg)/, { slots: 160, ...FEW }], [/^gen-([789]|11)/, { slots: 32, ...FEW }], [/^/, { slots: 64, ...FEW }]],
  apple: [[/^/, { slots: 80, ...FEW }]],
  qualcomm: [[/^adreno-[4-6]/, { slots: 16, ...FEW }], [/^/, { slots: 32, ...FEW }]],
  arm: [[/^/, { slots: 32, ...FEW }]],
};

const UNKNOWN: DeviceClass = { slots: 264, ...FEW };

export function deviceClass(vendor: string, architecture: string): DeviceClass {
  return CLASSES[vendor]?.find(([pattern]) => pattern.test(architecture))?.[1] ?? UNKNOWN;
}
