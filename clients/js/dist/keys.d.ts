/** What a key bundle holds, docs/key-bundle.md; how it reads labels, docs/codebook.md. */
import { type Bytes } from "./encoding.js";
import { UserKey } from "./kem.js";
export declare const MAX_SLOTS = 4096;
/** Of slot keys and of label keys. */
export declare const KEY_BYTES = 16;
/** What a key is for: to read models' answers, or to run models. */
export type Role = "read" | "run";
/** Whether a key with these roles can have this many bytes. */
export declare function isKeyLength(length: number, roles: readonly Role[]): boolean;
/** A point on the reading polynomial, and for each slot a bit and a slot key. */
export declare class ReaderKey {
    #private;
    readonly point: UserKey;
    /** M, the number of slots. */
    readonly numSlots: number;
    /** @param slots Codeword ‖ slot keys. */
    constructor(point: UserKey, slots: Bytes);
    get keyId(): string;
    /**
     * The classes of labels: (e[j, v] − mask) mod K, where v is the user's bit at the label's slot.
     *
     * @param labelKeys L_j of each, 16 bytes: AES blocks under the key of purpose `label keys v2`.
     * @param slots Of each label, below `numSlots`.
     * @param values e[j, 0] and e[j, 1] of each.
     */
    readLabels(labelKeys: Bytes, slots: ArrayLike<number>, values: ArrayLike<number>, numClasses: number): Int32Array;
}
/** One user's keys, by role. */
export declare class BundleKeys {
    #private;
    readonly keyId: string;
    private constructor();
    /** Read z ‖ P(z) of each role ‖ with `read`: codeword ‖ slot keys. */
    static fromSecretBytes(data: Bytes, roles: readonly Role[]): Promise<BundleKeys>;
    /** What reads models. Throws `KeyRefusedError` without the role `read`. */
    get reader(): ReaderKey;
}
