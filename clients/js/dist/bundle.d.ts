/** A user's key file: docs/formats/key-bundle.md. */
import { type CiphertextSource } from "./ciphertext.js";
import { type Bytes, type Check, type FileSource } from "./encoding.js";
import type { X25519PrivateKey, X25519PublicKey } from "./keypair.js";
import { BundleKeys, type Role } from "./keys.js";
import { type WorkOptions } from "./primitives.js";
declare const HEADER: Check<{
    authority: string;
    format: "encryip-key-bundle";
    issued_at: string;
    issuer: string;
    issuer_name: string;
    key_id: string;
    not_after: string;
    not_before: string;
    opens_with: "passphrase" | "private key";
    roles: Role[];
    scope: string[];
    subject: string;
    version: 3;
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
    /** The public key that it was made to; `undefined` if a passphrase opens it. */
    get recipient(): X25519PublicKey | undefined;
    /**
     * Parse a bundle; the signature is checked before anything could be decrypted.
     *
     * Throws `FormatError` if it is malformed, truncated, oversized, or of an unknown version or
     * field; `SignatureError` if the issuer named in the bundle did not sign it.
     */
    static parse(file: FileSource): Promise<KeyBundle>;
    /**
     * Decrypt the user's keys.
     *
     * @param secret The passphrase, or the private key of the bundle's `recipient`.
     * @param options Report progress, or abort.
     *
     * Throws `ArgumentError` for the other of the two; `PassphraseError`: wrong passphrase or changed
     * body; `KeyRefusedError`: the bundle was made to another public key; `SignatureError`: it was
     * changed since the keys were sealed.
     */
    unlock(secret: string | X25519PrivateKey, options?: WorkOptions): Promise<BundleKeys>;
    /** Refuse a bundle outside its dates, five minutes for clocks left. Advisory: the holder's clock decides. */
    checkDates(now?: Date): void;
    /** Whether the bundle's scope names this model. */
    allows(model: string): boolean;
    /** Read label ciphertexts with nothing but this bundle: their classes. */
    decrypt(ciphertexts: Iterable<CiphertextSource>, secret: string | X25519PrivateKey, options?: WorkOptions): Promise<number[]>;
}
export {};
