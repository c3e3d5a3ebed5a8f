/** A user's own X25519 key pair: docs/formats/key-bundle.md, section 4. */

import { x25519 } from "@noble/curves/ed25519.js";
import { sha256 } from "@noble/hashes/sha2.js";

import {
  type Bytes,
  type ByteSource,
  concat,
  type FileSource,
  fromHex,
  hex,
  readBytes,
} from "./encoding.js";
import { FormatError } from "./errors.js";
import { open, sharedSecret } from "./hpke.js";
import { unwrap } from "./pkcs8.js";
import type { WorkOptions } from "./primitives.js";

export const KEY_BYTES = 32;
const OID = "2b656e"; // 1.3.101.110 (RFC 8410)
const PUBLIC_PREFIX = fromHex("302a300506032b656e032100");
const PRIVATE_PREFIX = "0420";
const P = 2n ** 255n - 19n;
/** Every u of a point of small order below p, on the curve and its twist (RFC 7748, section 7). */
const SMALL_ORDER = [
  0n,
  1n,
  P - 1n,
  325606250916557431795983626356110631294008115727848805560023387167927233504n,
  39382357235489614581723060781553021112529911719440698176882885853963445705823n,
];

/** What a user sends to the owner; no secret. */
export class X25519PublicKey {
  readonly raw: Bytes;

  /**
   * @param raw Its 32 bytes (RFC 7748).
   *
   * Throws `FormatError` for another length, a second spelling of a key, and a point of small
   * order, to which anybody could read what is sealed.
   */
  constructor(raw: ByteSource) {
    this.raw = readBytes(raw, "public key");
    const { length } = this.raw;
    const u = length === KEY_BYTES ? BigInt(`0x${hex(this.raw.slice().reverse())}`) : P;
    if (u >= P || SMALL_ORDER.includes(u)) {
      throw new FormatError("These bytes are not an X25519 public key that can be used.");
    }
  }

  /** Half of SHA-256 of the key's DER form in hexadecimal, to be compared by voice. */
  get fingerprint(): string {
    const digest = hex(sha256(concat(PUBLIC_PREFIX, this.raw)));
    return digest.slice(0, 32).match(/.{4}/g)!.join(" ");
  }
}

/** A user's own private key, in a private field. It never leaves the user. */
export class X25519PrivateKey {
  readonly #secret: Bytes;
  /** What the owner got. */
  readonly publicKey: X25519PublicKey;

  private constructor(secret: Bytes) {
    this.#secret = secret;
    this.publicKey = new X25519PublicKey(new Uint8Array(x25519.getPublicKey(secret)));
  }

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
  static async parse(
    pem: FileSource,
    passphrase?: string,
    options: WorkOptions = {},
  ): Promise<X25519PrivateKey> {
    const { algorithm, key } = await unwrap(pem, passphrase, options);
    const prefix = hex(key.subarray(0, -KEY_BYTES));
    if (algorithm !== OID || prefix !== PRIVATE_PREFIX) {
      throw new FormatError("The private key is not for X25519.");
    }
    return new X25519PrivateKey(key.slice(-KEY_BYTES));
  }

  /** @internal Decrypt what was sealed to the public key (HPKE, base mode). */
  async unseal(
    encapsulated: X25519PublicKey,
    sealed: Bytes,
    info: Bytes,
    associatedData: Bytes,
  ): Promise<Bytes> {
    const dh = new Uint8Array(x25519.getSharedSecret(this.#secret, encapsulated.raw));
    const secret = await sharedSecret(dh, encapsulated.raw, this.publicKey.raw);
    return open(secret, info, associatedData, sealed);
  }
}
