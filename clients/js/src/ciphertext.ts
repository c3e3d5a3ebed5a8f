/** One prediction as self-contained bytes: docs/formats/codebook.md, section 4. */

import {
  type Bytes,
  type ByteSource,
  equal,
  hex,
  isBlob,
  readBlob,
  readBytes,
} from "./encoding.js";
import { ArgumentError, ForeignKeyError, FormatError } from "./errors.js";
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
/** Without the header, which has some. */
export const MIN_BYTES = PREFIX_BYTES + SUFFIX_BYTES;
const MAX_BYTES = 16_676;
/** In messages. */
export const WHAT = "label ciphertext";

/** A label ciphertext as asynchronous functions take it. */
export type CiphertextSource = ByteSource | Blob;

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

export function parseCiphertext(bytes: Bytes): LabelCiphertext {
  if (bytes.length <= MIN_BYTES || bytes.length > MAX_BYTES) {
    throw new FormatError(`A label ciphertext has a wrong length: ${bytes.length} bytes.`);
  }
  if (bytes[0] !== VERSION) {
    const older = bytes[0] === 1 ? " Release 0.3 of keras_encryip reads it." : "";
    throw new FormatError(
      `Label ciphertext version ${bytes[0]} is not read by this release, which reads ${VERSION}.` +
        older,
    );
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset);
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
export function ciphertextLabel(data: Bytes): number {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return data.length < SUFFIX_BYTES ? Infinity : view.getUint32(data.length - SUFFIX_BYTES + 2);
}

/** The elements of what must be a list of label ciphertexts. */
export function listed(ciphertexts: unknown): unknown[] {
  const given = ciphertexts as Iterable<unknown> | null | undefined;
  if (typeof given?.[Symbol.iterator] === "function") return [...given];
  throw new ArgumentError("`ciphertexts` must be a list of label ciphertexts.");
}

/** Read label ciphertexts of one authority, of any models, with a key alone. */
export async function decryptLabels(
  ciphertexts: Iterable<CiphertextSource>,
  key: ReaderKey,
  authority: Bytes,
): Promise<number[]> {
  const keys = new Map<string, Bytes>();
  const classes: number[] = [];
  for (const source of listed(ciphertexts)) {
    const data = isBlob(source)
      ? await readBlob(source, WHAT, MAX_BYTES)
      : readBytes(source, WHAT);
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
