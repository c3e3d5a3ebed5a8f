/** What a key bundle holds, docs/formats/key-bundle.md; how it reads labels, docs/formats/codebook.md. */
import { type Bytes } from "./encoding.js";
import { UserKey } from "./kem.js";
/** What `labelBlocks` gives for each label. */
export declare const LABEL_BYTES: number;
/**
 * Of labels first, first + 1, …: L_j, and a block whose first two bytes mask the label's slot.
 *
 * Slots are masked because a label has the same one in every codebook of a model: in the clear,
 * they would carry an old decode table to a new numbering.
 *
 * @param key Of purpose `label keys v2`.
 */
export declare const labelBlocks: (key: Bytes, first: number, count: number) => Promise<Bytes>;
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
     * A key of another authority finds random slots, and so random classes.
     *
     * @param blocks Of each label, as `labelBlocks` gives them.
     * @param maskedSlots Of each label, two bytes.
     * @param values e[j, 0] and e[j, 1] of each.
     */
    readLabels(blocks: Bytes, maskedSlots: ArrayLike<number>, values: ArrayLike<number>, numClasses: number): Int32Array;
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
