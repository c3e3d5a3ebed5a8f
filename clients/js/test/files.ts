/** The test vectors that Python's tests read too, and an authority to make files of any kind. */

import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";

import { ed25519, x25519 } from "@noble/curves/ed25519.js";
import { p256 } from "@noble/curves/nist.js";
import { scrypt } from "@noble/hashes/scrypt.js";
import { sha256, sha512 } from "@noble/hashes/sha2.js";

import {
  ascii,
  type Bytes,
  canonicalJson,
  concat,
  encodeBase64,
  fromHex,
  hex,
} from "../src/encoding.js";
import { keySchedule, sharedSecret } from "../src/hpke.js";
import { Header, UserKey } from "../src/kem.js";
import { aesBlocks, hkdf, taggedDigest } from "../src/primitives.js";

const { Fn, BASE } = p256.Point;

export const read = (name: string): any =>
  JSON.parse(readFileSync(new URL(`../../../../tests/vectors/${name}`, import.meta.url), "ascii"));

export { fromHex };
export const PASSPHRASE = "correct horse";

const random = (n: number): Bytes => webcrypto.getRandomValues(new Uint8Array(n));
const scalar = (): bigint => (BigInt(`0x${hex(random(40))}`) % (Fn.ORDER - 1n)) + 1n;
const scalarBytes = (value: bigint): Bytes => fromHex(value.toString(16).padStart(64, "0"));
const point = (exponent: bigint): Bytes => new Uint8Array(BASE.multiply(exponent).toBytes(true));

/** AES-256-GCM: ciphertext ‖ tag. */
async function encrypt(
  key: Bytes,
  iv: Bytes,
  plaintext: Bytes,
  additionalData: Bytes,
): Promise<Bytes> {
  const imported = await webcrypto.subtle.importKey("raw", key, "AES-GCM", false, ["encrypt"]);
  const parameters = { name: "AES-GCM", iv, additionalData };
  return new Uint8Array(await webcrypto.subtle.encrypt(parameters, imported, plaintext));
}

async function seal(key: Bytes, plaintext: Bytes, additionalData: Bytes): Promise<Bytes> {
  const iv = random(12);
  return concat(iv, await encrypt(key, iv, plaintext, additionalData));
}

/** HPKE's sender: the encapsulated key, and ciphertext ‖ tag. */
export async function sealTo(
  publicKey: Bytes,
  plaintext: Bytes,
  info: Bytes,
  associatedData: Bytes,
): Promise<[Bytes, Bytes]> {
  const own = x25519.keygen();
  const encapsulated = new Uint8Array(own.publicKey);
  const dh = new Uint8Array(x25519.getSharedSecret(own.secretKey, publicKey));
  const secret = await sharedSecret(dh, encapsulated, publicKey);
  const { key, nonce } = await keySchedule(secret, info);
  return [encapsulated, await encrypt(key, nonce, plaintext, associatedData)];
}

/** One PEM block. */
export const pem = (label: string, der: Uint8Array): string =>
  `-----BEGIN ${label}-----\n${encodeBase64(der)}\n-----END ${label}-----\n`;

/** Just enough of an authority to issue bundles and make codebooks, good ones and bad ones. */
export class Authority {
  readonly #seed = random(32);
  readonly #coefficients: bigint[];
  readonly #slotKeys: [Bytes, Bytes][];
  readonly issuer = new Uint8Array(ed25519.getPublicKey(this.#seed));

  constructor(
    readonly threshold = 2,
    readonly slots = 256,
  ) {
    this.#coefficients = Array.from({ length: threshold + 1 }, scalar);
    this.#slotKeys = Array.from({ length: slots }, () => [random(16), random(16)]);
  }

  digest(): Promise<Bytes> {
    return taggedDigest("public key v1", concat(...this.#coefficients.map(point)));
  }

  #evaluate(x: bigint): bigint {
    return this.#coefficients.reduceRight((sum, a) => Fn.add(Fn.mul(sum, x), a), 0n);
  }

  /** z ‖ P(z), and for another role any scalar ‖ codeword ‖ slot keys */
  issue(codeword = random(this.slots / 8), roles = ["read", "run"]): Bytes {
    const z = scalar();
    const others = roles.slice(1).map(() => scalarBytes(scalar()));
    const points = concat(scalarBytes(z), scalarBytes(this.#evaluate(z)), ...others);
    if (!roles.includes("read")) return points;
    const keys = this.#slotKeys.map((pair, slot) => pair[bit(codeword, slot)]!);
    return concat(points, codeword, ...keys);
  }

  sign(domain: string, message: string): string {
    const signed = concat(ascii(`encryip ${domain}\0`), sha512(ascii(message)));
    return encodeBase64(ed25519.sign(signed, this.#seed));
  }

  async bundle(
    key: Bytes,
    header: Record<string, unknown> = {},
    {
      passphrase = PASSPHRASE,
      log2N = 14,
      secret = key,
      publicKey = undefined as Bytes | undefined,
      info = "encryip key bundle v3",
    } = {},
  ): Promise<string> {
    const tagged = sha256(concat(ascii("encryip key id v1\0"), key.subarray(0, 32)));
    const whole = {
      authority: encodeBase64(await this.digest()),
      format: "encryip-key-bundle",
      issued_at: "2024-01-01T00:00:00Z",
      issuer: encodeBase64(this.issuer),
      issuer_name: "ACME",
      key_id: hex(tagged).slice(0, 16),
      not_after: "2999-01-01T00:00:00Z",
      not_before: "2024-01-01T00:00:00Z",
      opens_with: publicKey === undefined ? "passphrase" : "private key",
      roles: ["read", "run"],
      scope: ["*"],
      subject: "alice",
      version: 3,
      ...header,
    };
    const context = ascii(canonicalJson(whole));
    let body: Record<string, unknown>;
    if (publicKey !== undefined) {
      const [encapsulated, sealed] = await sealTo(publicKey, secret, ascii(info), context);
      body = {
        encapsulated: encodeBase64(encapsulated),
        recipient: encodeBase64(publicKey),
        sealed: encodeBase64(sealed),
      };
    } else {
      const salt = random(16);
      const password = ascii(passphrase.normalize("NFC"));
      const wrapping = new Uint8Array(
        scrypt(password, salt, { N: 2 ** log2N, r: 8, p: 1, dkLen: 32 }),
      );
      body = {
        salt: encodeBase64(salt),
        scrypt_log2_n: log2N,
        sealed: encodeBase64(await seal(wrapping, secret, context)),
      };
    }
    const bundle = { body, header: whole };
    const signature = this.sign("key bundle v3", canonicalJson(bundle));
    const line = canonicalJson({ bundle, signature });
    return `-----BEGIN ENCRYIP KEY BUNDLE-----\n${line}\n-----END ENCRYIP KEY BUNDLE-----\n`;
  }

  /** A header's bytes and its keys. */
  async #encapsulate(
    revoked: Bytes[],
  ): Promise<{ bytes: Bytes; key: (p: string) => Promise<Bytes> }> {
    const nodes = revoked.map((key) => BigInt(`0x${hex(key.subarray(0, 32))}`));
    while (nodes.length < this.threshold) nodes.push(scalar());
    nodes.sort((a, b) => (a < b ? -1 : 1));
    const r = scalar();
    const points = nodes.map((x) => point(Fn.mul(r, this.#evaluate(x))));
    const start = new Uint8Array([nodes.length]);
    const bytes = concat(start, ...nodes.map(scalarBytes), point(r), ...points);
    const secret = point(Fn.mul(r, this.#coefficients[0]!));
    const salt = await taggedDigest("header v1", bytes);
    return { bytes, key: (purpose) => hkdf(secret, salt, ascii(purpose)) };
  }

  /**
   * A codebook in which confused label j stands for class `classes[j]`, or for a pair: by the
   * user's bit at its slot, which is j modulo the number of slots.
   */
  async codebook(
    classes: (number | [number, number])[],
    metadata: Record<string, unknown>,
    { revoked = [] as Bytes[], numClasses = 3, body = {} as Record<string, unknown> } = {},
  ): Promise<string> {
    const header = await this.#encapsulate(revoked);
    const blocks = await aesBlocks(await header.key("label keys v2"), 0, 2 * classes.length);
    const slots = new DataView(new ArrayBuffer(2 * classes.length));
    const values = new DataView(new ArrayBuffer(8 * classes.length));
    for (const [j, pair] of classes.entries()) {
      const slot = j % this.slots;
      const labelKey = blocks.subarray(32 * j, 32 * j + 16);
      slots.setUint16(2 * j, slot ^ ((blocks[32 * j + 16]! << 8) | blocks[32 * j + 17]!));
      for (const [v, slotKey] of this.#slotKeys[slot]!.entries()) {
        const message = concat(ascii("encryip label mask v2\0"), slotKey, labelKey);
        const digest = hex(sha256(message).subarray(0, 16));
        const mask = Number(BigInt(`0x${digest}`) % BigInt(numClasses));
        const found = Array.isArray(pair) ? pair[v]! : pair;
        values.setUint32(8 * j + 4 * v, (found + mask) % numClasses);
      }
    }
    const [id, authority] = [random(16), await this.digest()];
    const plaintext = ascii(canonicalJson(metadata));
    const key = await header.key("model metadata v2");
    const whole = {
      authority: encodeBase64(authority),
      codebook_id: encodeBase64(id),
      format: "encryip-codebook",
      header: encodeBase64(header.bytes),
      issuer: encodeBase64(this.issuer),
      metadata: encodeBase64(await seal(key, plaintext, concat(id, authority))),
      num_classes: numClasses,
      slots: encodeBase64(new Uint8Array(slots.buffer)),
      values: encodeBase64(new Uint8Array(values.buffer)),
      version: 2,
      ...body,
    };
    return canonicalJson({
      body: whole,
      signature: this.sign("codebook v2", canonicalJson(whole)),
    });
  }
}

const bit = (codeword: Bytes, slot: number): number =>
  (codeword[slot >> 3]! >> (7 - (slot % 8))) & 1;

/** z ‖ P(z) in hexadecimal. */
export const userKeyOf = (text: string): Promise<UserKey> =>
  UserKey.fromSecretBytes(fromHex(text.slice(0, 64)), fromHex(text.slice(64)));

/** The key of a header as a point of the vectors' file names it. */
export async function derived(userKey: string, header: string, purpose: any): Promise<string> {
  const secret = await (await userKeyOf(userKey)).decapsulate(Header.parse(fromHex(header)));
  return hex(await secret.derive(purpose));
}
