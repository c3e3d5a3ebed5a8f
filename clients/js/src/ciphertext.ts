/** One prediction as self-contained bytes: docs/codebook.md, section 4. */

import { type Bytes, equal, hex } from "./encoding.js";
import { ForeignKeyError, FormatError } from "./errors.js";
import { Header } from "./kem.js";
import { labelBlocks, type ReaderKey } from "./keys.js";

export const CODEBOOK_ID_BYTES = 16;
export const DIGEST_BYTES = 32;
export const MAX_CLASSES = 2 ** 20;
export const MAX_LABELS = 2 ** 22;
/** masked slot ‖ j ‖ e[j, 0] ‖ e[j, 1] */
export const SUFFIX_BYTES = 2 + 4 + 4 + 4;
export const VERSION = 2;
const PREFIX_BYTES = 1 + CODEBOOK_ID_BYTES + DIGEST_BYTES + 4;
const MAX_BYTES = 16_676;

/** The fields of one label ciphertext. Public, and not authenticated. */
export interface LabelCiphertext {
  codebookId: Bytes;
  authority: Bytes;
  numClasses: number;
  header: Header;
  maskedSlot: number;
  label: number;
  /** e[j, 0] and e[j, 1] */
  values: [number, number];
}

export function parseCiphertext(data: Uint8Array): LabelCiphertext {
  if (data.length <= PREFIX_BYTES + SUFFIX_BYTES || data.length > MAX_BYTES) {
    throw new FormatError(`A label ciphertext has a wrong length: ${data.length} bytes.`);
  }
  if (data[0] !== VERSION) {
    const older = data[0] === 1 ? " Release 0.3 of keras_encryip reads it." : "";
    throw new FormatError(
      `Label ciphertext version ${data[0]} is not read by this release, which reads ${VERSION}.` +
        older,
    );
  }
  const bytes = new Uint8Array(data);
  const view = new DataView(bytes.buffer);
  const end = bytes.length - SUFFIX_BYTES;
  const header = Header.parse(bytes.subarray(PREFIX_BYTES, end));
  const numClasses = view.getUint32(PREFIX_BYTES - 4);
  const maskedSlot = view.getUint16(end);
  const label = view.getUint32(end + 2);
  const values: [number, number] = [view.getUint32(end + 6), view.getUint32(end + 10)];
  if (
    numClasses < 2 ||
    numClasses > MAX_CLASSES ||
    label >= MAX_LABELS ||
    Math.max(...values) >= numClasses
  ) {
    throw new FormatError("A label ciphertext has a field out of range.");
  }
  return {
    codebookId: bytes.subarray(1, 1 + CODEBOOK_ID_BYTES),
    authority: bytes.subarray(1 + CODEBOOK_ID_BYTES, PREFIX_BYTES - 4),
    numClasses,
    header,
    maskedSlot,
    label,
    values,
  };
}

/** The label j of a ciphertext's bytes, or of anything else that long. */
export function ciphertextLabel(data: Uint8Array): number {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return data.length < SUFFIX_BYTES ? Infinity : view.getUint32(data.length - SUFFIX_BYTES + 2);
}

/** Read label ciphertexts of one authority, of any models, with a key alone. */
export async function decryptLabels(
  ciphertexts: Iterable<Uint8Array>,
  key: ReaderKey,
  authority: Bytes,
): Promise<number[]> {
  const keys = new Map<string, Bytes>();
  const classes: number[] = [];
  for (const data of ciphertexts) {
    const { header, maskedSlot, label, values, ...fields } = parseCiphertext(data);
    if (!equal(fields.authority, authority)) {
      throw new ForeignKeyError(
        "This label was encrypted under another authority's public key. " +
          "Use the key bundle that belongs to the model that produced it.",
      );
    }
    const name = hex(header.bytes);
    const labelsKey =
      keys.get(name) ?? (await (await key.point.decapsulate(header)).derive("label keys v2"));
    keys.set(name, labelsKey);
    const blocks = await labelBlocks(labelsKey, label, 1);
    classes.push(key.readLabels(blocks, [maskedSlot], values, fields.numClasses)[0]!);
  }
  return classes;
}
