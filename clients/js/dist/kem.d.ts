/** Headers and user keys: docs/codebook.md, section 2. */
import { type Bytes } from "./encoding.js";
/** Which key a secret gives: docs/codebook.md, section 2. */
export type Purpose = "label mask v1" | "access metadata v1" | "hosted responses v1";
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
/** One point (z, P(z)) of the owner's polynomial. Shows its `keyId` only. */
export declare class UserKey {
    #private;
    /** 16 hexadecimal digits that name the key and tell nothing about P(z). */
    readonly keyId: string;
    private constructor();
    /** Read z ‖ P(z), 64 bytes. */
    static fromSecretBytes(data: Bytes): Promise<UserKey>;
    /**
     * The header's secret S = (λ_0·P(z))·R + Σ λ_j·H_j, as a key for one purpose: 32 bytes.
     *
     * Throws `RevokedKeyError` if z is one of the header's nodes.
     */
    derive(header: Header, purpose: Purpose): Promise<Bytes>;
}
