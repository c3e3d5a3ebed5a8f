/**
 * Opening of HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256) = 0x0020,
 * HKDF-SHA256 = 0x0001 and AES-256-GCM = 0x0002.
 */
import { type Bytes } from "./encoding.js";
/** Section 4.1, ExtractAndExpand: what both sides make of their Diffie-Hellman value. */
export declare function sharedSecret(dh: Bytes, encapsulated: Bytes, recipient: Bytes): Promise<Bytes>;
/** Section 5.1, KeySchedule in base mode: no pre-shared key. */
export declare function keySchedule(secret: Bytes, info: Bytes): Promise<{
    key: Bytes;
    nonce: Bytes;
}>;
/**
 * Section 5.2, Open of the first message, whose nonce is the base nonce.
 *
 * Throws `SignatureError`: another key, or any byte was changed.
 */
export declare function open(secret: Bytes, info: Bytes, associatedData: Bytes, sealed: Bytes): Promise<Bytes>;
