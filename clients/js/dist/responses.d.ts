/** Model outputs as they come over the wire: TF Serving's JSON, and encrypted responses. */
import { type Bytes } from "./encoding.js";
/** An encrypted response of N confused labels has N + 10 words: 6 of nonce, 4 of tag. */
export declare const EXTRA_WORDS = 10;
/** What a model server answered. */
export type Answer = {
    kind: "outputs";
    /** One row for each prediction: N confused labels, or N + 10 words if encrypted. */
    rows: number[][];
} | {
    kind: "ciphertexts";
    /** Label ciphertexts, of the signature `encrypted_label`. */
    ciphertexts: Bytes[];
};
/**
 * Read the JSON that TF Serving's REST API answers to `:predict`.
 *
 * Row format (`predictions`) and column format (`outputs`) are understood, with the plain tensor or
 * one of the named outputs `confused`, `encrypted`, `ciphertext_bytes`. What else is in the answer
 * is passed over, and takes no memory.
 *
 * Throws `FormatError` if it is no such response; TF Serving's own error is quoted.
 */
export declare function parseResponse(json: string): Answer;
/** Decrypt and check one encrypted response: N float32 from N + 10 words of 32 bits. */
export declare function openResponse(words: ArrayLike<number>, key: Bytes, associatedData: Bytes): Float32Array;
