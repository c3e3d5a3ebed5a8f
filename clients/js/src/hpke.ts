/**
 * Opening of HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256) = 0x0020,
 * HKDF-SHA256 = 0x0001 and AES-256-GCM = 0x0002.
 */

import { ascii, type Bytes, concat } from "./encoding.js";
import { hkdf, hmac, unseal } from "./primitives.js";

const KEM = concat(ascii("KEM"), new Uint8Array([0, 0x20])); // section 4.1
const SUITE = concat(ascii("HPKE"), new Uint8Array([0, 0x20, 0, 1, 0, 2])); // section 5.1
const NOTHING = new Uint8Array(0);

type Labeled = [label: string, data: Bytes];

const labeled = (suite: Bytes, [label, data]: Labeled): Bytes =>
  concat(ascii("HPKE-v1"), suite, ascii(label), data);

/** Section 4: LabeledExtract of the material, then LabeledExpand to `length` ≤ 32 bytes. */
function derive(
  suite: Bytes,
  salt: Bytes,
  material: Labeled,
  info: Labeled,
  length: number,
): Promise<Bytes> {
  const purpose = concat(new Uint8Array([0, length]), labeled(suite, info));
  return hkdf(labeled(suite, material), salt, purpose, length);
}

/** Section 4.1, ExtractAndExpand: what both sides make of their Diffie-Hellman value. */
export function sharedSecret(dh: Bytes, encapsulated: Bytes, recipient: Bytes): Promise<Bytes> {
  const context = concat(encapsulated, recipient);
  return derive(KEM, NOTHING, ["eae_prk", dh], ["shared_secret", context], 32);
}

/** Section 5.1, KeySchedule in base mode: no pre-shared key. */
export async function keySchedule(
  secret: Bytes,
  info: Bytes,
): Promise<{ key: Bytes; nonce: Bytes }> {
  // LabeledExtract without a salt: HMAC pads an empty key with zeros.
  const extract = (...data: Labeled): Promise<Bytes> =>
    hmac(new Uint8Array(32), labeled(SUITE, data));
  const hashes = [await extract("psk_id_hash", NOTHING), await extract("info_hash", info)];
  const context = concat(new Uint8Array([0]), ...hashes);
  const expand = (label: string, length: number): Promise<Bytes> =>
    derive(SUITE, secret, ["secret", NOTHING], [label, context], length);
  return { key: await expand("key", 32), nonce: await expand("base_nonce", 12) };
}

/**
 * Section 5.2, Open of the first message, whose nonce is the base nonce.
 *
 * Throws `SignatureError`: another key, or any byte was changed.
 */
export async function open(
  secret: Bytes,
  info: Bytes,
  associatedData: Bytes,
  sealed: Bytes,
): Promise<Bytes> {
  const { key, nonce } = await keySchedule(secret, info);
  return unseal(key, concat(nonce, sealed), associatedData);
}
