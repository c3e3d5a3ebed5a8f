/** The public table that gives every confused label its ciphertext: docs/codebook.md, section 5. */

import {
  CODEBOOK_ID_BYTES,
  DIGEST_BYTES,
  MAX_CLASSES,
  MAX_LABELS,
  readLabels,
  SUFFIX_BYTES,
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
import { Header, type UserKey } from "./kem.js";
import {
  pacer,
  PUBLIC_BYTES,
  SIGNATURE_BYTES,
  unseal,
  verify,
  type WorkOptions,
} from "./primitives.js";

const MAX_CODEBOOK_BYTES = 2 ** 28;
const MAX_BLOCKS = 64;
const DOMAIN = "codebook v1";

const FILE = object({
  body: object({
    access: object({ header: base64Text, sealed: base64Text }),
    authority: base64Text,
    blocks: list(object({ header: base64Text, size: integer(1, MAX_LABELS) }), 1, MAX_BLOCKS),
    codebook_id: base64Text,
    format: literal("encryip-codebook"),
    issuer: base64Text,
    num_classes: integer(2, MAX_CLASSES),
    values: base64Text,
    version: literal(1),
  }),
  signature: base64Text,
});

const METADATA = object({
  class_names: list(text(0, 256)),
  model: text(0, 256),
  notes: text(0, 65_536),
});

/** What only key holders learn: sealed under the access header. */
export type ModelMetadata = ReturnType<typeof METADATA>;

/** A parsed codebook. Everything in it is public. */
export class Codebook {
  private constructor(
    readonly codebookId: Bytes,
    readonly authority: Bytes,
    readonly issuer: Bytes,
    readonly numClasses: number,
    readonly headers: Header[],
    readonly blockSizes: number[],
    /** e_j of every confused label. */
    readonly values: Uint32Array,
    readonly accessHeader: Header,
    readonly sealedMetadata: Bytes,
    readonly signature: Bytes,
    /** @internal The body in canonical JSON: what is signed. */
    readonly body: string,
  ) {}

  get numLabels(): number {
    return this.values.length;
  }

  /** Parse and check the form. The signature is checked by `verify`. */
  static async parse(data: string | Uint8Array, options: WorkOptions = {}): Promise<Codebook> {
    const source = asciiText(data, "codebook", MAX_CODEBOOK_BYTES);
    const { body, signature } = parseCanonicalJson(source, FILE, "codebook");
    const sizes = body.blocks.map((block) => block.size);
    const numLabels = sizes.reduce((sum, size) => sum + size);
    if (numLabels > MAX_LABELS) {
      throw new FormatError(`The codebook has more than ${MAX_LABELS} labels.`);
    }
    const raw = new DataView(decodeBase64(body.values, "codebook values", 4 * numLabels).buffer);
    const values = Uint32Array.from({ length: numLabels }, (_, j) => raw.getUint32(4 * j));
    if (values.some((value) => value >= body.num_classes)) {
      throw new FormatError("A codebook value is not below num_classes.");
    }
    const pace = pacer(options);
    const headers: Header[] = [];
    for (const block of body.blocks) {
      await pace(headers.length / sizes.length);
      headers.push(Header.parse(decodeBase64(block.header, "codebook block header")));
    }
    const access = Header.parse(decodeBase64(body.access.header, "codebook access header"));
    if (headers.some((header) => header.threshold !== access.threshold)) {
      throw new FormatError("Codebook headers have different thresholds.");
    }
    return new Codebook(
      decodeBase64(body.codebook_id, "codebook_id", CODEBOOK_ID_BYTES),
      decodeBase64(body.authority, "authority", DIGEST_BYTES),
      decodeBase64(body.issuer, "issuer", PUBLIC_BYTES),
      body.num_classes,
      headers,
      sizes,
      values,
      access,
      decodeBase64(body.access.sealed, "access metadata"),
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

  /** The sealed metadata: the test of whether the key may read this model. */
  async openMetadata(key: UserKey): Promise<ModelMetadata> {
    let plaintext: Bytes | undefined;
    let revoked = false;
    try {
      const accessKey = await key.derive(this.accessHeader, "access metadata v1");
      const associatedData = concat(this.codebookId, this.authority);
      plaintext = await unseal(accessKey, this.sealedMetadata, associatedData);
    } catch (error) {
      revoked = error instanceof RevokedKeyError;
      if (!revoked && !(error instanceof SignatureError)) throw error;
    }
    if (revoked) {
      throw new RevokedKeyError(
        `Key ${key.keyId} was revoked before this model version was exported. ` +
          "Ask the model's owner for a new key.",
      );
    }
    if (plaintext === undefined) {
      throw new ForeignKeyError(
        `Key ${key.keyId} does not open this codebook: another authority issued it.`,
      );
    }
    const source = asciiText(plaintext, "model metadata", MAX_CODEBOOK_BYTES);
    const metadata = parseCanonicalJson(source, METADATA, "model metadata");
    if (metadata.class_names.length !== this.numClasses) {
      throw new FormatError("The model metadata names another number of classes.");
    }
    return metadata;
  }

  /** What a host encrypts its responses with: the access header's secret. */
  responseKey(key: UserKey): Promise<Bytes> {
    return key.derive(this.accessHeader, "hosted responses v1");
  }

  /**
   * The class, 0 … K−1, that each confused label stands for, to this key.
   *
   * Access is not checked here: a foreign key gets a table of random classes.
   */
  async decodeTable(key: UserKey, options: WorkOptions = {}): Promise<Int32Array> {
    const pace = pacer(options);
    const table = new Int32Array(this.numLabels);
    let start = 0;
    for (const [block, header] of this.headers.entries()) {
      await pace(block / this.headers.length);
      const values = this.values.subarray(start, start + this.blockSizes[block]!);
      const maskKey = await key.derive(header, "label mask v1");
      table.set(await readLabels(maskKey, start, values, this.numClasses), start);
      start += values.length;
    }
    await pace(1);
    return table;
  }

  /** The label ciphertext of one confused label. */
  ciphertext(label: number): Bytes {
    let block = 0;
    for (let end = this.blockSizes[0]!; label >= end; end += this.blockSizes[block]!) block++;
    const numbers = new DataView(new ArrayBuffer(4 + SUFFIX_BYTES));
    numbers.setUint32(0, this.numClasses);
    numbers.setUint32(4, label);
    numbers.setUint32(8, this.values[label]!);
    const [classes, suffix] = [
      new Uint8Array(numbers.buffer, 0, 4),
      new Uint8Array(numbers.buffer, 4),
    ];
    const version = new Uint8Array([1]);
    const { bytes } = this.headers[block]!;
    return concat(version, this.codebookId, this.authority, classes, bytes, suffix);
  }
}
