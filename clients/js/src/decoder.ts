/** Turns confused labels into class probabilities. */

import { KeyBundle } from "./bundle.js";
import { ciphertextLabel, listed, parseCiphertext, WHAT } from "./ciphertext.js";
import { Codebook, MAX_CODEBOOK_BYTES, type ModelMetadata } from "./codebook.js";
import {
  type Bytes,
  type ByteSource,
  equal,
  type FileSource,
  readBytes,
  readFile,
} from "./encoding.js";
import { ArgumentError, ForeignKeyError, WrongModelError } from "./errors.js";
import type { X25519PrivateKey } from "./keypair.js";
import { checkMark, type Mark, markOf } from "./mark.js";
import type { WorkOptions } from "./primitives.js";
import { EXTRA_WORDS, openResponse } from "./responses.js";

/**
 * Model outputs, one row for each prediction: N confused labels, or the N + 10 integers of an
 * encrypted response.
 */
export type Rows = readonly ArrayLike<number>[];

/** How rows are read. */
export interface RowOptions {
  /**
   * Take outputs that a runtime with few bits has rounded, whatever they add up to. Otherwise they
   * must be at least -0.001, and 1 ± 0.01 in sum.
   */
  quantised?: boolean | undefined;
}

/** How far the outputs of one input may be from 1 in sum, and a single one below 0. */
const SUM_TOLERANCE = 0.01;
const NEGATIVE_TOLERANCE = 0.001;

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
  readonly #mark: Mark;

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
    this.#mark = markOf(codebook.codebookId, codebook.numLabels);
  }

  /**
   * Open a model's outputs with a key bundle.
   *
   * @param codebook The file `codebook.json`, its bytes or its text.
   * @param bundle A key bundle, or its file, bytes or text.
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
    codebook: FileSource,
    bundle: KeyBundle | FileSource,
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
    const book = Codebook.parse(await readFile(codebook, "codebook", MAX_CODEBOOK_BYTES));
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
   * Throws `ArgumentError` for rows of another length, and for what no model has for outputs;
   * `WrongModelError` if they are of another version of the model, which is noticed where nothing
   * has rounded them; `SignatureError` if an encrypted response was changed, or is of another
   * version.
   */
  probabilities(rows: Rows, { quantised = false }: RowOptions = {}): Float32Array[] {
    if (!Array.isArray(rows)) {
      throw new ArgumentError("`rows` must be an array of rows, one for each prediction.");
    }
    const table = this.#table;
    return Array.from(rows, (row: ArrayLike<number> | null | undefined, i) => {
      const confused =
        row?.length === this.numLabels + EXTRA_WORDS
          ? openResponse(row, this.#responseKey, this.#codebook.codebookId)
          : row;
      if (confused?.length !== this.numLabels) {
        throw new ArgumentError(
          `\`rows\` must hold ${this.numLabels} numbers each, the outputs of model ` +
            `'${this.model}'. Received: a row of ${confused?.length ?? "no length"}`,
        );
      }
      checkOutputs(confused, i, quantised);
      checkMark(this.#mark, confused, this.model);
      const sums = new Float64Array(this.classNames.length);
      for (let j = 0; j < confused.length; j++) sums[table[j]!]! += confused[j]!;
      return new Float32Array(sums);
    });
  }

  /** The most probable class of each row. */
  labels(rows: Rows, options?: RowOptions): number[] {
    return this.probabilities(rows, options).map((row) =>
      row.reduce((best, probability, label) => (probability > row[best]! ? label : best), 0),
    );
  }

  /** The names of `labels(rows)`. */
  names(rows: Rows, options?: RowOptions): string[] {
    return this.labels(rows, options).map((label) => this.classNames[label]!);
  }

  /** The k most probable classes of each row, best first. */
  topK(rows: Rows, k = 5, options?: RowOptions): Guess[][] {
    if (!Number.isInteger(k) || k < 1 || k > this.classNames.length) {
      throw new ArgumentError(`\`k\` must be in 1 … ${this.classNames.length}. Received: k=${k}`);
    }
    return this.probabilities(rows, options).map((row) =>
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
  decrypt(ciphertexts: Iterable<ByteSource>): number[] {
    return listed(ciphertexts).map((source) => {
      const data = readBytes(source, WHAT);
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

/** Refuse what no model has for outputs. */
function checkOutputs(outputs: ArrayLike<unknown>, row: number, quantised: boolean): void {
  let sum = 0;
  let size = 0;
  let least = Infinity;
  for (let j = 0; j < outputs.length; j++) {
    const value = outputs[j];
    if (typeof value === "number") {
      sum += value;
      size += Math.abs(value);
      least = Math.min(least, value);
    } else size = NaN;
  }
  if (!Number.isFinite(Math.fround(size))) {
    throw new ArgumentError(
      "`rows` must hold a model's outputs: finite numbers, also with `{ quantised: true }`. " +
        `Received: rows[${row}] with NaN, infinity or no number`,
    );
  }
  if (quantised) return;
  if (Math.abs(sum - 1) <= SUM_TOLERANCE && least >= -NEGATIVE_TOLERANCE) return;
  throw new ArgumentError(
    "`rows` must hold a model's outputs, at least 0 and 1 in sum. Pass `{ quantised: true }` for " +
      `a runtime that rounds them. Received: rows[${row}] with the sum ${+sum.toPrecision(6)} ` +
      `and the least value ${+least.toPrecision(6)}`,
  );
}
