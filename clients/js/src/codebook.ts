/** The public table that gives every confused label its ciphertext: docs/formats/codebook.md, section 5. */

import {
  CODEBOOK_ID_BYTES,
  DIGEST_BYTES,
  MAX_CLASSES,
  MAX_LABELS,
  SUFFIX_BYTES,
  VERSION,
} from "./ciphertext.js";
import {
  asciiText,
  base64Text,
  type Bytes,
  canonicalJson,
  concat,
  decodeBase64,
  equal,
  integer,
  list,
  literal,
  object,
  parseCanonicalJson,
  text,
} from "./encoding.js";
import { ForeignKeyError, FormatError, RevokedKeyError, SignatureError } from "./errors.js";
import { Header, type SharedSecret } from "./kem.js";
import {
  pacer,
  PUBLIC_BYTES,
  SIGNATURE_BYTES,
  unseal,
  verify,
  type WorkOptions,
} from "./primitives.js";
import { LABEL_BYTES, labelBlocks, type ReaderKey } from "./keys.js";

export const MAX_CODEBOOK_BYTES = 2 ** 28;
const DOMAIN = "codebook v2";
const OLD = '"version":1}';
const OLD_TAIL = 256;
/** Labels that are read in one go: a millisecond. */
const CHUNK = 256;

const FILE = object({
  body: object({
    authority: base64Text,
    codebook_id: base64Text,
    format: literal("encryip-codebook"),
    header: base64Text,
    issuer: base64Text,
    metadata: base64Text,
    num_classes: integer(2, MAX_CLASSES),
    slots: base64Text,
    values: base64Text,
    version: literal(VERSION),
  }),
  signature: base64Text,
});

const METADATA = object({
  class_names: list(text(0, 256)),
  model: text(0, 256),
  notes: text(0, 65_536),
});

/** What only key holders learn: sealed under the codebook's secret. */
export type ModelMetadata = ReturnType<typeof METADATA>;

/** A parsed codebook. Everything in it is public. */
export class Codebook {
  private constructor(
    readonly codebookId: Bytes,
    readonly authority: Bytes,
    readonly issuer: Bytes,
    readonly numClasses: number,
    /** Opens to the secret of all labels. */
    readonly header: Header,
    readonly sealedMetadata: Bytes,
    /** The slot of every confused label, masked. */
    readonly maskedSlots: Uint16Array,
    /** e[0, 0], e[0, 1], e[1, 0], …: for users whose bit at the label's slot is 0, or 1. */
    readonly values: Uint32Array,
    readonly signature: Bytes,
    /** @internal The body in canonical JSON: what is signed. */
    readonly body: string,
  ) {}

  get numLabels(): number {
    return this.maskedSlots.length;
  }

  /** Parse and check the form. The signature is checked by `verify`. */
  static parse(data: string | Uint8Array): Codebook {
    const source = asciiText(data, "codebook", MAX_CODEBOOK_BYTES);
    if (source.slice(-OLD_TAIL).includes(OLD)) {
      throw new FormatError(
        "This codebook has version 1, which release 0.3 of keras_encryip reads; this release " +
          `reads ${VERSION}. Export the model anew, or use release 0.3.`,
      );
    }
    const { body, signature } = parseCanonicalJson(source, FILE, "codebook");
    const slotBytes = decodeBase64(body.slots, "codebook slots");
    const numLabels = slotBytes.length / 2;
    if (!Number.isInteger(numLabels) || numLabels < 2 || numLabels > MAX_LABELS) {
      throw new FormatError(`The codebook must have 2 … ${MAX_LABELS} labels, 2 bytes each.`);
    }
    const maskedSlots = new Uint16Array(numLabels);
    readIntegers(maskedSlots, slotBytes, 2 ** 16);
    const values = new Uint32Array(2 * numLabels);
    const valueBytes = decodeBase64(body.values, "codebook values", 8 * numLabels);
    if (!readIntegers(values, valueBytes, body.num_classes)) {
      throw new FormatError("A codebook value is not below num_classes.");
    }
    return new Codebook(
      decodeBase64(body.codebook_id, "codebook_id", CODEBOOK_ID_BYTES),
      decodeBase64(body.authority, "authority", DIGEST_BYTES),
      decodeBase64(body.issuer, "issuer", PUBLIC_BYTES),
      body.num_classes,
      Header.parse(decodeBase64(body.header, "codebook header")),
      decodeBase64(body.metadata, "codebook metadata"),
      maskedSlots,
      values,
      decodeBase64(signature, "codebook signature", SIGNATURE_BYTES),
      canonicalJson(body),
    );
  }

  /** Check that `issuer` (an Ed25519 public key that you trust) signed this codebook. */
  async verify(issuer: Bytes): Promise<void> {
    if (!equal(this.issuer, issuer)) {
      throw new ForeignKeyError(
        "The codebook was made by another authority than the one that issued this key.",
      );
    }
    await verify(issuer, DOMAIN, this.body, this.signature, "codebook");
  }

  /** What the header opens to, for this key: one decapsulation. */
  async secret(key: ReaderKey): Promise<SharedSecret> {
    try {
      return await key.point.decapsulate(this.header);
    } catch (error) {
      if (!(error instanceof RevokedKeyError)) throw error;
    }
    throw new RevokedKeyError(
      `Key ${key.keyId} was revoked before this model version was exported. ` +
        "Ask the model's owner for a new key.",
    );
  }

  /** The sealed metadata: the test of whether the key may read this model. */
  async openMetadata(key: ReaderKey, secret: SharedSecret): Promise<ModelMetadata> {
    const metadataKey = await secret.derive("model metadata v2");
    const associatedData = concat(this.codebookId, this.authority);
    let plaintext: Bytes | undefined;
    try {
      plaintext = await unseal(metadataKey, this.sealedMetadata, associatedData);
    } catch (error) {
      if (!(error instanceof SignatureError)) throw error;
    }
    if (plaintext === undefined) throw foreign(key);
    const source = asciiText(plaintext, "model metadata", MAX_CODEBOOK_BYTES);
    const metadata = parseCanonicalJson(source, METADATA, "model metadata");
    if (metadata.class_names.length !== this.numClasses) {
      throw new FormatError("The model metadata names another number of classes.");
    }
    return metadata;
  }

  /**
   * The class, 0 … K−1, that each confused label stands for, to this key.
   *
   * Access is not checked here: with a foreign secret, it is a table of random classes.
   */
  async decodeTable(
    key: ReaderKey,
    secret: SharedSecret,
    options: WorkOptions = {},
  ): Promise<Int32Array> {
    const pace = pacer(options);
    const blocks = await labelBlocks(await secret.derive("label keys v2"), 0, this.numLabels);
    const table = new Int32Array(this.numLabels);
    for (let start = 0; start < table.length; start += CHUNK) {
      await pace(start / table.length);
      const end = start + CHUNK;
      const slots = this.maskedSlots.subarray(start, end);
      const values = this.values.subarray(2 * start, 2 * end);
      const some = blocks.subarray(LABEL_BYTES * start, LABEL_BYTES * end);
      table.set(key.readLabels(some, slots, values, this.numClasses), start);
    }
    await pace(1);
    return table;
  }

  /** The label ciphertext of one confused label. */
  ciphertext(label: number): Bytes {
    const classes = new DataView(new ArrayBuffer(4));
    classes.setUint32(0, this.numClasses);
    const suffix = new DataView(new ArrayBuffer(SUFFIX_BYTES));
    suffix.setUint16(0, this.maskedSlots[label]!);
    suffix.setUint32(2, label);
    suffix.setUint32(6, this.values[2 * label]!);
    suffix.setUint32(10, this.values[2 * label + 1]!);
    return concat(
      new Uint8Array([VERSION]),
      this.codebookId,
      this.authority,
      new Uint8Array(classes.buffer),
      this.header.bytes,
      new Uint8Array(suffix.buffer),
    );
  }
}

const foreign = (key: ReaderKey): ForeignKeyError =>
  new ForeignKeyError(`Key ${key.keyId} does not open this codebook: another authority issued it.`);

/** Fill an array with the big-endian integers in `data`; false if one is not below `limit`. */
function readIntegers(array: Uint16Array | Uint32Array, data: Bytes, limit: number): boolean {
  const size = array.BYTES_PER_ELEMENT;
  for (let i = 0; i < array.length; i++) {
    let value = 0;
    for (let at = size * i; at < size * (i + 1); at++) value = 256 * value + data[at]!;
    if (value >= limit) return false;
    array[i] = value;
  }
  return true;
}
