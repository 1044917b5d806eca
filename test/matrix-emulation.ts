/**
 * Subgroup matrices for adapters that have none: rewrites the WGSL of the matrix tier to core WGSL with subgroups of 4, so
 * that the kernel's own text runs on a software adapter.
 *
 * A matrix variable becomes a place in a private array: 16 rows, of which each of the 4 lanes holds 4 columns. f16 becomes
 * f32 and its bit patterns.
 */
const ELEMENTS = { kv_tile: 8, q_tile: 8, probs: 4, slices: 4 } as const;

/** One number of an array of 8 an element. */
function tileHalf(array: 'kv_tile' | 'q_tile'): string {
  return `fn ${array}_half(at: u32) -> f32 { let v = unpack2x16float(${array}[at / 8u][(at / 2u) % 4u]); return select(v.x, v.y, at % 2u == 1u); }`;
}

const LIBRARY = `
${tileHalf('kv_tile')}
fn probs_half(at: u32) -> f32 { let v = unpack2x16float(probs[at / 4u][(at / 2u) % 2u]); return select(v.x, v.y, at % 2u == 1u); }
fn slices_half(at: u32) -> f32 { return slices[at / 4u][at % 4u]; }
fn clear_matrix(m: u32) { for (var r = 0u; r < 16u; r++) { bank[m + r] = vec4<f32>(); } }
fn multiply(a: u32, b: u32, c: u32) {
  for (var i = 0u; i < 16u; i++) {
    var sum = bank[c + i];
    for (var k = 0u; k < 4u; k++) {
      let x = subgroupShuffle(bank[a + i], k);
      sum += x.x * bank[b + 4u * k] + x.y * bank[b + 4u * k + 1u] + x.z * bank[b + 4u * k + 2u] + x.w * bank[b + 4u * k + 3u];
    }
    bank[c + i] = sum;
  }
}
fn store_col_slices(offset: u32, m: u32, stride: u32) {
  for (var r = 0u; r < 16u; r += 4u) {
    for (var c = 0u; c < 4u; c++) { slices[offset + (4u * my_lane + c) * stride + r / 4u] = vec4<f32>(bank[m + r][c], bank[m + r + 1u][c], bank[m + r + 2u][c], bank[m + r + 3u][c]); }
  }
}
fn store_row_slices(offset: u32, m: u32, stride: u32) {
  for (var r = 0u; r < 16u; r++) { slices[offset + r * stride + my_lane] = bank[m + r]; }
}
fn store_row_kv_tile(offset: u32, m: u32, stride: u32) {
  for (var r = 0u; r < 16u; r++) { kv_tile[offset + r * stride + my_lane] = bitcast<vec4<u32>>(bank[m + r]); }
}
`;

function loader(name: string, major: string, array: keyof typeof ELEMENTS): string {
  const units = `${ELEMENTS[array]}u`;
  const element = (c: number): string => {
    const [outer, inner] = major === 'row' ? ['r', `my_lane * 4u + ${c}u`] : [`(my_lane * 4u + ${c}u)`, 'r'];
    return `${array}_half((offset + ${outer} * stride) * ${units} + ${inner})`;
  };
  return `fn ${name}(m: u32, offset: u32, stride: u32) { for (var r = 0u; r < 16u; r++) { bank[m + r] = vec4<f32>(${[0, 1, 2, 3].map(element).join(', ')}); } }`;
}

/** The same kernel without subgroup matrices and without f16. `source` is in the newer syntax. @throws Error on what it does not know */
export function emulateMatrices(source: string): string {
  const loaders = new Map<string, string>();
  const places = new Map<string, number>();
  const place = (name: string): string => {
    if (!places.has(name)) places.set(name, places.size);
    return `${16 * places.get(name)!}u`;
  };
  const load = (major: string, array: string): string => {
    const name = `load_${major}_${array}`;
    loaders.set(name, loader(name, major, array as keyof typeof ELEMENTS));
    return name;
  };
  const body = source
    .replace(/\/\/.*$/gm, '')
    .replace(/^enable (chromium_experimental_subgroup_matrix|f16);\s*/gm, '')
    .replace(/^diagnostic\(off, chromium\.[^;]*;\s*/gm, '')
    .replace(/^alias (Left|Right|Result) = .*$/gm, '')
    .replace(/var (\w+) = (?:Left|Right|Result)\(\);/g, (_, name: string) => `let ${name} = ${place(name)}; clear_matrix(${name});`)
    .replace(/\b(\w+) = (?:Left|Right|Result)\(\);/g, (_, name: string) => `clear_matrix(${name});`)
    .replace(/let (\w+) = subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, name: string, major: string, array: string) => `let ${name} = ${place(name)}; ${load(major, array)}(${name}, `)
    .replace(/(\w+) = subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, name: string, major: string, array: string) => `${load(major, array)}(${name}, `)
    .replace(/(\w+) = subgroupMatrixMultiplyAccumulate\((\w+), (\w+), \1\);/g, 'multiply($2, $3, $1);')
    .replace(/subgroupMatrixStore<(row|col)_major>\(&(slices|kv_tile), /g, 'store_$1_$2(')
    .replace(/bitcast<vec2<f16>>\(([\w.]+)\)/g, 'unpack2x16float($1)')
    .replace(/bitcast<u32>\(vec2<f16>\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\)/g, 'pack2x16float($1)')
    .replace(/vec2<f16>/g, 'vec2<f32>')
    .replace(/\bf16\(([\d.]+)\)/g, 'f32($1)')
    .replace(/(fn main\([^{]*\{)/, '$1\n  my_lane = subgroup_lane;');
  const left = /.*(\bf16\b|subgroup_matrix|subgroupMatrix).*/.exec(body);
  if (left) throw new Error(`not emulated: ${left[0]}`);
  const head = /^(?:\s*(?:enable|diagnostic)[^;]*;)*/.exec(body)![0];
  return [head, `var<private> bank: array<vec4<f32>, ${16 * places.size}>;`, 'var<private> my_lane: u32;', LIBRARY, ...(body.includes('q_tile') ? [tileHalf('q_tile')] : []), ...loaders.values(), body.slice(head.length)].join('\n');
}
