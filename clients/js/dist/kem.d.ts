/** Headers, user keys and what these open: docs/formats/codebook.md, section 2. */
import { type Bytes } from "./encoding.js";
export declare const SCALAR_BYTES = 32;
/** Which key a secret gives: docs/formats/codebook.md, section 2. */
export type Purpose = "label keys v2" | "model metadata v2" | "hosted responses v2";
export declare function split(data: Bytes, size: number): Bytes[];
/** Coefficients λ with P(0) = Σ λ_i·P(x_i), for distinct and nonzero x_i. */
export declare function lagrangeAtZero(nodes: bigint[]): bigint[];
/** A KEM ciphertext: t ‖ x_1 … x_t ‖ R ‖ H_1 … H_t. Public. */
export declare class Header {
    readonly bytes: Bytes;
    readonly nodes: bigint[];
    get threshold(): number;
    /** Read and check a header; every point is decoded, so a bad one fails here. */
    static parse(bytes: Bytes): Header;
    /** SHA-256 over a domain tag and the bytes: the salt of every derived key. */
    digest(): Promise<Bytes>;
}
/** What a header opens to, as keys for named purposes. */
export declare class SharedSecret {
    #private;
    constructor(point: Bytes, salt: Bytes);
    /** The key for one purpose: 32 bytes. */
    derive(purpose: Purpose): Promise<Bytes>;
}
/** One point (z, P(z)) of the owner's polynomial. Shows its `keyId` only. */
export declare class UserKey {
    #private;
    /** 16 hexadecimal digits that name the key and tell nothing about P(z). */
    readonly keyId: string;
    private constructor();
    /** Read z and P(z), 32 bytes each. */
    static fromSecretBytes(z: Bytes, value: Bytes): Promise<UserKey>;
    /**
     * The header's secret S = (λ_0·P(z))·R + Σ λ_j·H_j.
     *
     * Throws `RevokedKeyError` if z is one of the header's nodes.
     */
    decapsulate(header: Header): Promise<SharedSecret>;
}
