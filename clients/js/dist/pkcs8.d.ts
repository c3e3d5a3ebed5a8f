/**
 * Private keys in files: PEM (RFC 7468) around PKCS #8 (RFC 5958), in the clear or encrypted with
 * PBES2 (RFC 8018): scrypt (RFC 7914) or PBKDF2-HMAC-SHA256, and AES-128-CBC or AES-256-CBC.
 */
import { type Bytes, type FileSource } from "./encoding.js";
import { type WorkOptions } from "./primitives.js";
/** What is inside of a private key's file. */
export interface PrivateKeyInfo {
    /** The algorithm's object identifier: its DER content in hexadecimal. */
    algorithm: string;
    /** The algorithm's own form of the key. */
    key: Bytes;
}
/** Read one PEM block; `passphrase` exactly if it is encrypted. */
export declare function unwrap(file: FileSource, passphrase: string | undefined, options: WorkOptions): Promise<PrivateKeyInfo>;
