/** A user's own X25519 key pair: docs/formats/key-bundle.md, section 4. */
import { type Bytes, type ByteSource, type FileSource } from "./encoding.js";
import type { WorkOptions } from "./primitives.js";
export declare const KEY_BYTES = 32;
/** What a user sends to the owner; no secret. */
export declare class X25519PublicKey {
    readonly raw: Bytes;
    /**
     * @param raw Its 32 bytes (RFC 7748).
     *
     * Throws `FormatError` for another length, a second spelling of a key, and a point of small
     * order, to which anybody could read what is sealed.
     */
    constructor(raw: ByteSource);
    /** Half of SHA-256 of the key's DER form in hexadecimal, to be compared by voice. */
    get fingerprint(): string;
}
/** A user's own private key, in a private field. It never leaves the user. */
export declare class X25519PrivateKey {
    #private;
    /** What the owner got. */
    readonly publicKey: X25519PublicKey;
    private constructor();
    /**
     * Parse a PEM file, e.g. `alice.private.pem`, as `encryip key new` and OpenSSL write it.
     *
     * @param pem One block `ENCRYPTED PRIVATE KEY` or `PRIVATE KEY`, as a file, text or bytes.
     * @param passphrase Opens an encrypted one; `undefined` for one that is not.
     * @param options Report progress, or abort.
     *
     * Throws `PassphraseError` if the passphrase is wrong, missing, or not asked for; `FormatError`
     * if there is no such block, more than one, a key of another kind, or an encryption that this
     * client does not read.
     */
    static parse(pem: FileSource, passphrase?: string, options?: WorkOptions): Promise<X25519PrivateKey>;
}
