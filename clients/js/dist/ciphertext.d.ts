/** Masks, and one prediction as self-contained bytes: docs/codebook.md, sections 3 and 4. */
import { type Bytes } from "./encoding.js";
import { Header, type UserKey } from "./kem.js";
export declare const CODEBOOK_ID_BYTES = 16;
export declare const DIGEST_BYTES = 32;
export declare const MAX_CLASSES: number;
export declare const MAX_LABELS: number;
export declare const SUFFIX_BYTES = 8;
/** class_j = (e_j − mask_j) mod K of the labels `first`, `first` + 1, … of one block. */
export declare function readLabels(maskKey: Bytes, first: number, values: ArrayLike<number>, numClasses: number): Promise<Int32Array>;
/** The fields of one label ciphertext. Public, and not authenticated. */
export interface LabelCiphertext {
    codebookId: Bytes;
    authority: Bytes;
    numClasses: number;
    header: Header;
    label: number;
    value: number;
}
export declare function parseCiphertext(data: Uint8Array): LabelCiphertext;
/** Read label ciphertexts of one authority, of any models, with a user key alone. */
export declare function decryptLabels(ciphertexts: Iterable<Uint8Array>, key: UserKey, authority: Bytes): Promise<number[]>;
