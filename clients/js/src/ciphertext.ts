/** Masks, and one prediction as self-contained bytes: docs/codebook.md, sections 3 and 4. */

import { aesBlocks } from "./primitives.js";
import { type Bytes, equal, hex } from "./encoding.js";
import { ForeignKeyError, FormatError } from "./errors.js";
import { Header, type UserKey } from "./kem.js";

export const CODEBOOK_ID_BYTES = 16;
export const DIGEST_BYTES = 32;
export const MAX_CLASSES = 2 ** 20;
export const MAX_LABELS = 2 ** 22;
export const SUFFIX_BYTES = 8;
const VERSION = 1;
const PREFIX_BYTES = 1 + CODEBOOK_ID_BYTES + DIGEST_BYTES + 4;
const MAX_BYTES = 16_670;

/** class_j = (e_j − mask_j) mod K of the labels `first`, `first` + 1, … of one block. */
export async function readLabels(
  maskKey: Bytes,
  first: number,
  values: ArrayLike<number>,
  numClasses: number,
): Promise<Int32Array> {
  const blocks = new DataView((await aesBlocks(maskKey, first, values.length)).buffer);
  return Int32Array.from(values, (value, i) => {
    let mask = 0;
    for (let word = 0; word < 4; word++) {
      // K ≤ 2²⁰: below 2⁵², so exact.
      mask = (mask * 2 ** 32 + blocks.getUint32(16 * i + 4 * word)) % numClasses;
    }
    return (value - mask + numClasses) % numClasses;
  });
}

/** The fields of one label ciphertext. Public, and not authenticated. */
export interface LabelCiphertext {
  codebookId: Bytes;
  authority: Bytes;
  numClasses: number;
  header: Header;
  label: number;
  value: number;
}

export function parseCiphertext(data: Uint8Array): LabelCiphertext {
  if (data.length <= PREFIX_BYTES + SUFFIX_BYTES || data.length > MAX_BYTES) {
    throw new FormatError(`A label ciphertext has a wrong length: ${data.length} bytes.`);
  }
  if (data[0] !== VERSION) {
    throw new FormatError(
      `Label ciphertext version ${data[0]} is unknown; this release reads ${VERSION}.`,
    );
  }
  const bytes = new Uint8Array(data);
  const view = new DataView(bytes.buffer);
  const header = Header.parse(bytes.subarray(PREFIX_BYTES, -SUFFIX_BYTES));
  const numClasses = view.getUint32(PREFIX_BYTES - 4);
  const label = view.getUint32(bytes.length - 8);
  const value = view.getUint32(bytes.length - 4);
  if (numClasses < 2 || numClasses > MAX_CLASSES || label >= MAX_LABELS || value >= numClasses) {
    throw new FormatError("A label ciphertext has a field out of range.");
  }
  return {
    codebookId: bytes.subarray(1, 1 + CODEBOOK_ID_BYTES),
    authority: bytes.subarray(1 + CODEBOOK_ID_BYTES, PREFIX_BYTES - 4),
    numClasses,
    header,
    label,
    value,
  };
}

/** Read label ciphertexts of one authority, of any models, with a user key alone. */
export async function decryptLabels(
  ciphertexts: Iterable<Uint8Array>,
  key: UserKey,
  authority: Bytes,
): Promise<number[]> {
  const keys = new Map<string, Bytes>();
  const classes: number[] = [];
  for (const data of ciphertexts) {
    const ciphertext = parseCiphertext(data);
    if (!equal(ciphertext.authority, authority)) {
      throw new ForeignKeyError(
        "This label was encrypted under another authority's public key. " +
          "Use the key bundle that belongs to the model that produced it.",
      );
    }
    const name = hex(ciphertext.header.bytes);
    const maskKey = keys.get(name) ?? (await key.derive(ciphertext.header, "label mask v1"));
    keys.set(name, maskKey);
    const { label, value, numClasses } = ciphertext;
    classes.push((await readLabels(maskKey, label, [value], numClasses))[0]!);
  }
  return classes;
}
