/** The public table that gives every confused label its ciphertext: docs/codebook.md, section 5. */
import { type Bytes } from "./encoding.js";
import { Header, type UserKey } from "./kem.js";
import { type WorkOptions } from "./primitives.js";
declare const METADATA: import("./encoding.js").Check<{
    class_names: string[];
    model: string;
    notes: string;
}>;
/** What only key holders learn: sealed under the access header. */
export type ModelMetadata = ReturnType<typeof METADATA>;
/** A parsed codebook. Everything in it is public. */
export declare class Codebook {
    readonly codebookId: Bytes;
    readonly authority: Bytes;
    readonly issuer: Bytes;
    readonly numClasses: number;
    readonly headers: Header[];
    readonly blockSizes: number[];
    /** e_j of every confused label. */
    readonly values: Uint32Array;
    readonly accessHeader: Header;
    readonly sealedMetadata: Bytes;
    readonly signature: Bytes;
    private constructor();
    get numLabels(): number;
    /** Parse and check the form. The signature is checked by `verify`. */
    static parse(data: string | Uint8Array, options?: WorkOptions): Promise<Codebook>;
    /** Check that `issuer` (an Ed25519 public key that you trust) signed this codebook. */
    verify(issuer: Bytes): Promise<void>;
    /** The sealed metadata: the test of whether the key may read this model. */
    openMetadata(key: UserKey): Promise<ModelMetadata>;
    /** What a host encrypts its responses with: the access header's secret. */
    responseKey(key: UserKey): Promise<Bytes>;
    /**
     * The class, 0 … K−1, that each confused label stands for, to this key.
     *
     * Access is not checked here: a foreign key gets a table of random classes.
     */
    decodeTable(key: UserKey, options?: WorkOptions): Promise<Int32Array>;
    /** The label ciphertext of one confused label. */
    ciphertext(label: number): Bytes;
}
export {};
