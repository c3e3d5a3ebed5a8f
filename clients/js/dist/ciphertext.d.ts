/** One prediction as self-contained bytes: docs/formats/codebook.md, section 4. */
import { type Bytes, type ByteSource } from "./encoding.js";
import { Header } from "./kem.js";
import { type ReaderKey } from "./keys.js";
export declare const CODEBOOK_ID_BYTES = 16;
export declare const DIGEST_BYTES = 32;
export declare const MAX_CLASSES: number;
export declare const MAX_LABELS: number;
/** masked slot ‖ j ‖ e[j, 0] ‖ e[j, 1] */
export declare const SUFFIX_BYTES: number;
export declare const VERSION = 2;
/** Without the header, which has some. */
export declare const MIN_BYTES: number;
/** In messages. */
export declare const WHAT = "label ciphertext";
/** A label ciphertext as asynchronous functions take it. */
export type CiphertextSource = ByteSource | Blob;
/** The fields of one label ciphertext. Public, and not authenticated. */
export interface LabelCiphertext {
    codebookId: Bytes;
    authority: Bytes;
    numClasses: number;
    header: Header;
    maskedSlot: number;
    label: number;
    /** e[j, 0] and e[j, 1] */
    values: [number, number];
}
export declare function parseCiphertext(bytes: Bytes): LabelCiphertext;
/** The label j of a ciphertext's bytes, or of anything else that long. */
export declare function ciphertextLabel(data: Bytes): number;
/** The elements of what must be a list of label ciphertexts. */
export declare function listed(ciphertexts: unknown): unknown[];
/** Read label ciphertexts of one authority, of any models, with a key alone. */
export declare function decryptLabels(ciphertexts: Iterable<CiphertextSource>, key: ReaderKey, authority: Bytes): Promise<number[]>;
