/** Turns confused labels into class probabilities. */

import { KeyBundle } from "./bundle.js";
import { ciphertextLabel, parseCiphertext } from "./ciphertext.js";
import { Codebook, type ModelMetadata } from "./codebook.js";
import { type Bytes, equal } from "./encoding.js";
import { ArgumentError, ForeignKeyError, WrongModelError } from "./errors.js";
import type { X25519PrivateKey } from "./keypair.js";
import type { WorkOptions } from "./primitives.js";
import { EXTRA_WORDS, openResponse } from "./responses.js";

/**
 * Model outputs, one row for each prediction: N confused labels, or the N + 10 integers of an
 * encrypted response.
 */
export type Rows = readonly ArrayLike<number>[];

/** One of the most probable classes. */
export interface Guess {
  label: number;
  name: string;
  probability: number;
}

/**
 * Reads the outputs of one protected model with one user's key.
 *
 * Get one with `Decoder.open`. It holds the key's decode table in private fields: printing,
 * serialising or cloning it shows public facts only.
 */
export class Decoder {
  /** The model's name. */
  readonly model: string;
  /** The names of its K classes. */
  readonly classNames: readonly string[];
  /** N, the model's number of outputs. */
  readonly numLabels: number;
  readonly #codebook: Codebook;
  readonly #table: Int32Array;
  readonly #responseKey: Bytes;

  private constructor(
    codebook: Codebook,
    metadata: ModelMetadata,
    table: Int32Array,
    responseKey: Bytes,
  ) {
    this.model = metadata.model;
    this.classNames = metadata.class_names;
    this.numLabels = codebook.numLabels;
    this.#codebook = codebook;
    this.#table = table;
    this.#responseKey = responseKey;
  }

  /**
   * Open a model's outputs with a key bundle.
   *
   * @param codebook The bytes or text of `codebook.json`.
   * @param bundle A key bundle, or its bytes or text.
   * @param secret Opens the bundle: the passphrase, or for a bundle that was made to the user's
   *   public key, the `X25519PrivateKey`.
   * @param options Report progress, or abort.
   *
   * Throws `ForeignKeyError` if the bundle is of another authority than the model,
   * `RevokedKeyError` if the key was revoked before this version was exported, `ExpiredKeyError` if
   * the bundle is outside its dates, `WrongModelError` if it is not meant for this model,
   * `KeyRefusedError` if it was made to another public key or does not read models;
   * `ArgumentError`, `PassphraseError`, `FormatError`, `SignatureError` as they say.
   */
  static async open(
    codebook: string | Uint8Array,
    bundle: KeyBundle | string | Uint8Array,
    secret: string | X25519PrivateKey,
    { signal, onProgress }: WorkOptions = {},
  ): Promise<Decoder> {
    signal?.throwIfAborted();
    onProgress?.(0);
    const half = (index: number): WorkOptions => ({
      signal,
      onProgress: (done) => onProgress?.((index + done) / 2),
    });
    const key = bundle instanceof KeyBundle ? bundle : await KeyBundle.parse(bundle);
    const book = Codebook.parse(codebook);
    if (!equal(book.authority, key.authority)) {
      throw new ForeignKeyError(
        `Key bundle ${key.header.key_id} was issued by another authority ` +
          `('${key.header.issuer_name}') than the one that made this model.`,
      );
    }
    await book.verify(key.issuer);
    key.checkDates();
    const { reader } = await key.unlock(secret, half(0));
    const opened = await book.secret(reader);
    const metadata = await book.openMetadata(reader, opened);
    const table = await book.decodeTable(reader, opened, half(1));
    if (!key.allows(metadata.model)) {
      throw new WrongModelError(
        `Key bundle ${key.header.key_id} is for model(s) ${key.header.scope.join(", ")}, ` +
          `not for '${metadata.model}'.`,
      );
    }
    return new Decoder(book, metadata, table, await opened.derive("hosted responses v2"));
  }

  /** The class of each confused label, to this key. Secret. */
  secretTable(): Int32Array {
    return this.#table.slice();
  }

  /**
   * Class probabilities: for each row, K sums over the class's confused labels.
   *
   * Throws `ArgumentError` for rows of another length; `SignatureError` if an encrypted response
   * was changed, or is of another version.
   */
  probabilities(rows: Rows): Float32Array[] {
    const table = this.#table;
    return rows.map((row) => {
      const confused =
        row.length === this.numLabels + EXTRA_WORDS
          ? openResponse(row, this.#responseKey, this.#codebook.codebookId)
          : row;
      if (confused.length !== this.numLabels) {
        throw new ArgumentError(
          `\`rows\` must hold ${this.numLabels} numbers each, the outputs of model ` +
            `'${this.model}'. Received: a row of ${confused.length}`,
        );
      }
      const sums = new Float64Array(this.classNames.length);
      for (let j = 0; j < confused.length; j++) sums[table[j]!]! += confused[j]!;
      return new Float32Array(sums);
    });
  }

  /** The most probable class of each row. */
  labels(rows: Rows): number[] {
    return this.probabilities(rows).map((row) =>
      row.reduce((best, probability, label) => (probability > row[best]! ? label : best), 0),
    );
  }

  /** The names of `labels(rows)`. */
  names(rows: Rows): string[] {
    return this.labels(rows).map((label) => this.classNames[label]!);
  }

  /** The k most probable classes of each row, best first. */
  topK(rows: Rows, k = 5): Guess[][] {
    if (!Number.isInteger(k) || k < 1 || k > this.classNames.length) {
      throw new ArgumentError(`\`k\` must be in 1 … ${this.classNames.length}. Received: k=${k}`);
    }
    return this.probabilities(rows).map((row) =>
      Array.from(row, (probability, label) => ({
        label,
        name: this.classNames[label]!,
        probability,
      }))
        .sort((a, b) => b.probability - a.probability)
        .slice(0, k),
    );
  }

  /**
   * Read outputs of the `encrypted_label` signature: their classes.
   *
   * Throws `FormatError` for what is no label ciphertext, `WrongModelError` for one that was not
   * made with this model version's codebook.
   */
  decrypt(ciphertexts: Iterable<Uint8Array>): number[] {
    return Array.from(ciphertexts, (data) => {
      const label = ciphertextLabel(data);
      if (label >= this.numLabels || !equal(this.#codebook.ciphertext(label), data)) {
        parseCiphertext(data); // malformed bytes say so
        throw new WrongModelError(
          `A ciphertext does not belong to this version of model '${this.model}'. ` +
            "Open the codebook it was made with, or use KeyBundle.decrypt.",
        );
      }
      return this.#table[label]!;
    });
  }
}
