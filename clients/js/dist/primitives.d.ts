/**
 * The cryptographic primitives: the platform's WebCrypto where browsers have it, else noble.
 *
 * Not constant-time where noble or the engine's integers are not.
 */
import { type Bytes } from "./encoding.js";
export declare const OVERHEAD: number;
export declare const SALT_BYTES = 16;
export declare const PUBLIC_BYTES = 32;
export declare const SIGNATURE_BYTES = 64;
export declare const MIN_SCRYPT_LOG2_N = 14;
export declare const MAX_SCRYPT_LOG2_N = 20;
/** What long work takes: it never holds the page up for longer than some 10 ms. */
export interface WorkOptions {
    /** Aborts the work; its promise is then rejected with the signal's reason. */
    signal?: AbortSignal | undefined;
    /** Called with the part that is done, 0 … 1. */
    onProgress?: ((done: number) => void) | undefined;
}
/** A function to call between the pieces of long work; `done` is the part that is done. */
export declare function pacer({ signal, onProgress }: WorkOptions): (done: number) => Promise<void>;
/** SHA-256 of a tag, a zero byte and the data. */
export declare function taggedDigest(tag: string, data: Uint8Array): Promise<Bytes>;
/** HKDF-SHA256 (RFC 5869), 32 bytes. */
export declare function hkdf(material: Bytes, salt: Bytes, purpose: string): Promise<Bytes>;
/** Open AES-256-GCM: nonce (12) ‖ ciphertext ‖ tag (16). Throws `SignatureError` for all causes. */
export declare function unseal(key: Bytes, sealed: Bytes, associatedData: Bytes): Promise<Bytes>;
/** AES-256 of the 16-byte blocks first, first + 1, … (big-endian): counter mode's key stream. */
export declare function aesBlocks(key: Bytes, first: number, count: number): Promise<Bytes>;
/** Check an Ed25519 signature (RFC 8032) over the domain and the message's SHA-512. */
export declare function verify(publicKey: Bytes, domain: string, message: string, signature: Bytes, what: string): Promise<void>;
/** scrypt (RFC 7914) over the NFC-normalised UTF-8 passphrase, r = 8, p = 1, N = 2^log2N. */
export declare function passphraseKey(passphrase: string, salt: Bytes, log2N: number, { signal, onProgress }: WorkOptions): Promise<Bytes>;
