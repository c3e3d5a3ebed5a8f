/** The public table that gives every confused label its ciphertext: docs/formats/codebook.md, section 5. */
import { type Bytes } from "./encoding.js";
import { Header, type SharedSecret } from "./kem.js";
import { type WorkOptions } from "./primitives.js";
import { type ReaderKey } from "./keys.js";
export declare const MAX_CODEBOOK_BYTES: number;
declare const METADATA: import("./encoding.js").Check<{
    class_names: string[];
    model: string;
    notes: string;
}>;
/** What only key holders learn: sealed under the codebook's secret. */
export type ModelMetadata = ReturnType<typeof METADATA>;
/** A parsed codebook. Everything in it is public. */
export declare class Codebook {
    readonly codebookId: Bytes;
    readonly authority: Bytes;
    readonly issuer: Bytes;
    readonly numClasses: number;
    /** Opens to the secret of all labels. */
    readonly header: Header;
    readonly sealedMetadata: Bytes;
    /** The slot of every confused label, masked. */
    readonly maskedSlots: Uint16Array;
    /** e[0, 0], e[0, 1], e[1, 0], …: for users whose bit at the label's slot is 0, or 1. */
    readonly values: Uint32Array;
    readonly signature: Bytes;
    private constructor();
    get numLabels(): number;
    /** Parse and check the form. The signature is checked by `verify`. */
    static parse(data: string | Uint8Array): Codebook;
    /** Check that `issuer` (an Ed25519 public key that you trust) signed this codebook. */
    verify(issuer: Bytes): Promise<void>;
    /** What the header opens to, for this key: one decapsulation. */
    secret(key: ReaderKey): Promise<SharedSecret>;
    /** The sealed metadata: the test of whether the key may read this model. */
    openMetadata(key: ReaderKey, secret: SharedSecret): Promise<ModelMetadata>;
    /**
     * The class, 0 … K−1, that each confused label stands for, to this key.
     *
     * Access is not checked here: with a foreign secret, it is a table of random classes.
     */
    decodeTable(key: ReaderKey, secret: SharedSecret, options?: WorkOptions): Promise<Int32Array>;
    /** The label ciphertext of one confused label. */
    ciphertext(label: number): Bytes;
}
export {};
