/** A user's key file: docs/key-bundle.md. */
import { type Bytes } from "./encoding.js";
import { UserKey } from "./kem.js";
import { type WorkOptions } from "./primitives.js";
declare const HEADER: import("./encoding.js").Check<{
    authority: string;
    format: "encryip-key-bundle";
    issued_at: string;
    issuer: string;
    issuer_name: string;
    key_id: string;
    not_after: string;
    not_before: string;
    scope: string[];
    subject: string;
    version: 1;
}>;
/** What a bundle says in the clear. */
export type BundleHeader = Readonly<ReturnType<typeof HEADER>>;
/** A key bundle whose signature has been checked, still sealed. */
export declare class KeyBundle {
    #private;
    readonly header: BundleHeader;
    /** SHA-256 digest of the authority's public key. */
    readonly authority: Bytes;
    /** The authority's Ed25519 public key. */
    readonly issuer: Bytes;
    readonly notBefore: Date;
    readonly notAfter: Date;
    private constructor();
    /**
     * Parse a bundle; the signature is checked before anything could be decrypted.
     *
     * Throws `FormatError` if it is malformed, truncated, oversized, or of an unknown version or
     * field; `SignatureError` if the issuer named in the bundle did not sign it.
     */
    static parse(data: string | Uint8Array): Promise<KeyBundle>;
    /** Decrypt the user key. Throws `PassphraseError`: wrong passphrase or changed body. */
    unlock(passphrase: string, options?: WorkOptions): Promise<UserKey>;
    /** Refuse a bundle outside its dates. Advisory: the holder's clock decides. */
    checkDates(now?: Date): void;
    /** Whether the bundle's scope names this model. */
    allows(model: string): boolean;
    /** Read label ciphertexts with nothing but this bundle: their classes. */
    decrypt(ciphertexts: Iterable<Uint8Array>, passphrase: string, options?: WorkOptions): Promise<number[]>;
}
export {};
