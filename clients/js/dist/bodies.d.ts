/** How a bundle's keys are sealed: with a passphrase, or to the user's public key. */
import { type Bytes } from "./encoding.js";
import { X25519PrivateKey, X25519PublicKey } from "./keypair.js";
import { type WorkOptions } from "./primitives.js";
import { type Role } from "./keys.js";
/** The fields for a passphrase: AES-256-GCM under scrypt. */
export declare const PASSPHRASE_FIELDS: import("./encoding.js").Check<{
    salt: string;
    scrypt_log2_n: number;
    sealed: string;
}>;
/** The fields for a private key: HPKE to the user's X25519 public key. */
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
    /** The secret bytes. `bundle` names the file in messages; `header` is associated data. */
    open(secret: Secret, bundle: string, header: Bytes, options: WorkOptions): Promise<Bytes>;
}
/** Decode the fields for a passphrase. */
export declare function passphraseBody(fields: ReturnType<typeof PASSPHRASE_FIELDS>, roles: readonly Role[]): Body;
/** Decode the fields for a private key. */
export declare function publicKeyBody(fields: ReturnType<typeof PUBLIC_KEY_FIELDS>, roles: readonly Role[]): Body;
export {};
