/**
 * Subgroup matrices for adapters that have none: rewrites the WGSL of the matrix tier to core WGSL with subgroups of 4, so
 * that the kernel's own text runs on a software adapter.
 *
 * A matrix variable becomes a place in a private array: 16 rows, of which each of the 4 lanes holds 4 columns. f16 becomes
 * f32 and its bit patterns.
 */
const ELEMENTS = { kv_tile: 8, q_tile: 8, probs: 4, slices: 4 } as const;
type MatrixArray = keyof typeof ELEMENTS;

/** `scalar`: arrays of numbers, as in the older syntax. */
type ArrayForm = 'vectors' | 'scalar';

const LIBRARY = `
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
`;

/** One number of an array. */
function reader(array: MatrixArray, form: ArrayForm): string {
  const body = form === 'scalar' ? `return ${array}[at];`
    : array === 'slices' ? 'return slices[at / 4u][at % 4u];'
    : `let v = unpack2x16float(${array}[at / ${ELEMENTS[array]}u][(at / 2u) % ${ELEMENTS[array] / 2}u]); return select(v.x, v.y, at % 2u == 1u);`;
  return `fn ${array}_half(at: u32) -> f32 { ${body} }`;
}

function loader(name: string, major: string, array: MatrixArray, form: ArrayForm): string {
  const units = form === 'scalar' ? '1u' : `${ELEMENTS[array]}u`;
  const element = (c: number): string => {
    const [outer, inner] = major === 'row' ? ['r', `my_lane * 4u + ${c}u`] : [`(my_lane * 4u + ${c}u)`, 'r'];
    return `${array}_half((offset + ${outer} * stride) * ${units} + ${inner})`;
  };
  return `fn ${name}(m: u32, offset: u32, stride: u32) { for (var r = 0u; r < 16u; r++) { bank[m + r] = vec4<f32>(${[0, 1, 2, 3].map(element).join(', ')}); } }`;
}

/** Sums of f32, row by row. */
function storer(name: string, array: MatrixArray, form: ArrayForm): string {
  const row = form === 'scalar' ? `for (var c = 0u; c < 4u; c++) { ${array}[offset + r * stride + 4u * my_lane + c] = bank[m + r][c]; }`
    : `${array}[offset + r * stride + my_lane] = ${array === 'slices' ? 'bank[m + r]' : 'bitcast<vec4<u32>>(bank[m + r])'};`;
  return `fn ${name}(offset: u32, m: u32, stride: u32) { for (var r = 0u; r < 16u; r++) { ${row} } }`;
}

/** The newer syntax, but for the elements that places and strides count. */
function newer(source: string): string {
  return source
    .replace(/subgroupMatrixLoad<(\w+)>\((.*), (true|false), (.*)\);/g, (_, type: string, from: string, byColumn: string, stride: string) =>
      `subgroupMatrixLoad<${type}, ${byColumn === 'true' ? 'col' : 'row'}_major>(${from}, ${stride});`)
    .replace(/subgroupMatrixStore\((.*), false, (.*)\);/g, 'subgroupMatrixStore<row_major>($1, $2);');
}

/** The same kernel without subgroup matrices and without f16. @throws Error on what it does not know */
export function emulateMatrices(source: string): string {
  const form = /array<f16\b/.test(source) ? 'scalar' : 'vectors';
  const functions = new Map<string, string>();
  const places = new Map<string, number>();
  const place = (name: string): string => {
    if (!places.has(name)) places.set(name, places.size);
    return `${16 * places.get(name)!}u`;
  };
  const load = (major: string, array: string): string => {
    const name = `load_${major}_${array}`;
    functions.set(`${array}_half`, reader(array as MatrixArray, form)).set(name, loader(name, major, array as MatrixArray, form));
    return name;
  };
  const store = (array: string): string => {
    const name = `store_row_${array}`;
    functions.set(name, storer(name, array as MatrixArray, form));
    return name;
  };
  const body = newer(source.replace(/\/\/.*$/gm, ''))
    .replace(/^enable (chromium_experimental_subgroup_matrix|f16);\s*/gm, '')
    .replace(/^diagnostic\(off, chromium\.[^;]*;\s*/gm, '')
    .replace(/^alias (Left|Right|Result) = .*$/gm, '')
    .replace(/var (\w+) = (?:Left|Right|Result)\(\);/g, (_, name: string) => `let ${name} = ${place(name)}; clear_matrix(${name});`)
    .replace(/\b(\w+) = (?:Left|Right|Result)\(\);/g, (_, name: string) => `clear_matrix(${name});`)
    .replace(/let (\w+) = subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, name: string, major: string, array: string) => `let ${name} = ${place(name)}; ${load(major, array)}(${name}, `)
    .replace(/(\w+) = subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, name: string, major: string, array: string) => `${load(major, array)}(${name}, `)
    .replace(/(\w+) = subgroupMatrixMultiplyAccumulate\((\w+), (\w+), \1\);/g, 'multiply($2, $3, $1);')
    .replace(/subgroupMatrixStore<row_major>\(&(\w+), /g, (_, array: string) => `${store(array)}(`)
    .replace(/bitcast<vec2<f16>>\(([\w.[\]]+)\)/g, 'unpack2x16float($1)')
    .replace(/bitcast<u32>\(vec2<f16>\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\)/g, 'pack2x16float(vec2<f32>($1))')
    .replace(/vec2<f16>/g, 'vec2<f32>')
    .replace(/array<f16,/g, 'array<f32,')
    .replace(/\bf16\(([\d.]+)\)/g, 'f32($1)')
    .replace(/(fn main\([^{]*\{)/, '$1\n  my_lane = subgroup_lane;');
  const left = /.*(\bf16\b|subgroup_matrix|subgroupMatrix).*/.exec(body);
  if (left) throw new Error(`not emulated: ${left[0]}`);
  const head = /^(?:\s*(?:enable|diagnostic)[^;]*;)*/.exec(body)![0];
  return [head, `var<private> bank: array<vec4<f32>, ${16 * places.size}>;`, 'var<private> my_lane: u32;', LIBRARY, ...functions.values(), body.slice(head.length)].join('\n');
}
