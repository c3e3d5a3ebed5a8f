/** How a bundle's user key is sealed: with a passphrase, or to the user's public key. */
import { type Bytes } from "./encoding.js";
import { X25519PrivateKey, X25519PublicKey } from "./keypair.js";
import { type WorkOptions } from "./primitives.js";
/** The fields of version 1: AES-256-GCM under scrypt. */
export declare const PASSPHRASE_FIELDS: import("./encoding.js").Check<{
    salt: string;
    scrypt_log2_n: number;
    sealed: string;
}>;
/** The fields of version 2: HPKE to the user's X25519 public key. */
export declare const PUBLIC_KEY_FIELDS: import("./encoding.js").Check<{
    encapsulated: string;
    recipient: string;
    sealed: string;
}>;
type Secret = string | X25519PrivateKey;
/** The sealed part of a bundle. */
export interface Body {
    /** The public key it was made to; `undefined` if a passphrase opens it. */
    readonly recipient: X25519PublicKey | undefined;
    /** The user key's bytes. `bundle` names the file in messages; `header` is associated data. */
    open(secret: Secret, bundle: string, header: Bytes, options: WorkOptions): Promise<Bytes>;
}
/** Decode the fields of version 1. */
export declare function passphraseBody(fields: ReturnType<typeof PASSPHRASE_FIELDS>): Body;
/** Decode the fields of version 2. */
export declare function publicKeyBody(fields: ReturnType<typeof PUBLIC_KEY_FIELDS>): Body;
export {};
