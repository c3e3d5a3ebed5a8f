/** Turns confused labels into class probabilities. */
import { KeyBundle } from "./bundle.js";
import { type ByteSource, type FileSource } from "./encoding.js";
import type { X25519PrivateKey } from "./keypair.js";
import type { WorkOptions } from "./primitives.js";
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
export declare class Decoder {
    #private;
    /** The model's name. */
    readonly model: string;
    /** The names of its K classes. */
    readonly classNames: readonly string[];
    /** N, the model's number of outputs. */
    readonly numLabels: number;
    private constructor();
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
    static open(codebook: FileSource, bundle: KeyBundle | FileSource, secret: string | X25519PrivateKey, { signal, onProgress }?: WorkOptions): Promise<Decoder>;
    /** The class of each confused label, to this key. Secret. */
    secretTable(): Int32Array;
    /**
     * Class probabilities: for each row, K sums over the class's confused labels.
     *
     * Throws `ArgumentError` for rows of another length, and for what no model has for outputs;
     * `WrongModelError` if they are of another version of the model, which is noticed where nothing
     * has rounded them; `SignatureError` if an encrypted response was changed, or is of another
     * version.
     */
    probabilities(rows: Rows, { quantised }?: RowOptions): Float32Array[];
    /** The most probable class of each row. */
    labels(rows: Rows, options?: RowOptions): number[];
    /** The names of `labels(rows)`. */
    names(rows: Rows, options?: RowOptions): string[];
    /** The k most probable classes of each row, best first. */
    topK(rows: Rows, k?: number, options?: RowOptions): Guess[][];
    /**
     * Read outputs of the `encrypted_label` signature: their classes.
     *
     * Throws `FormatError` for what is no label ciphertext, `WrongModelError` for one that was not
     * made with this model version's codebook.
     */
    decrypt(ciphertexts: Iterable<ByteSource>): number[];
}
