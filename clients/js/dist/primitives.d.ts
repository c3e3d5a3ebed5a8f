/**
 * The cryptographic primitives: the platform's WebCrypto where browsers have it, else noble.
 *
 * Not constant-time where noble or the engine's integers are not.
 */
import { type Bytes } from "./encoding.js";
export declare const TAG_BYTES = 16;
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
export declare function subtle(): SubtleCrypto;
/** SHA-256 of a tag, a zero byte and the data. */
export declare function taggedDigest(tag: string, data: Uint8Array): Promise<Bytes>;
/** HKDF-SHA256 (RFC 5869), `length` bytes. */
export declare function hkdf(material: Bytes, salt: Bytes, info: Bytes, length?: number): Promise<Bytes>;
/** HMAC-SHA256 (RFC 2104). */
export declare function hmac(key: Bytes, data: Bytes): Promise<Bytes>;
/** Open AES-256-GCM: nonce (12) ‖ ciphertext ‖ tag (16). Throws `SignatureError` for all causes. */
export declare function unseal(key: Bytes, sealed: Bytes, associatedData: Bytes): Promise<Bytes>;
/** Open AES-CBC with the padding of PKCS #7, which tells most wrong keys: then `undefined`. */
export declare function decryptCbc(key: Bytes, iv: Bytes, data: Bytes): Promise<Bytes | undefined>;
/** AES-256 of the 16-byte blocks first, first + 1, … (big-endian): counter mode's key stream. */
export declare function aesBlocks(key: Bytes, first: number, count: number): Promise<Bytes>;
/** Check an Ed25519 signature (RFC 8032) over the domain and the message's SHA-512. */
export declare function verify(publicKey: Bytes, domain: string, message: string, signature: Bytes, what: string): Promise<void>;
/** The passphrase as NFC-normalised UTF-8: the same from every keyboard. */
export declare function passphraseBytes(passphrase: string): Bytes;
/** scrypt (RFC 7914), `length` bytes; `what` asks for its cost. */
export declare function scryptKey(password: Bytes, salt: Bytes, { N, r, p }: {
    N: number;
    r: number;
    p: number;
}, length: number, what: string, { signal, onProgress }: WorkOptions): Promise<Bytes>;
/** PBKDF2-HMAC-SHA256 (RFC 8018), `length` bytes: one piece of work, but not the page's. */
export declare function pbkdf2Key(password: Bytes, salt: Bytes, iterations: number, length: number, { signal, onProgress }: WorkOptions): Promise<Bytes>;
