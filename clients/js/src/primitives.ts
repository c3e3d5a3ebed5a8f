/**
 * The cryptographic primitives: the platform's WebCrypto where browsers have it, else noble.
 *
 * Not constant-time where noble or the engine's integers are not.
 */

import { ed25519 } from "@noble/curves/ed25519.js";
import { scryptAsync } from "@noble/hashes/scrypt.js";
import { nextTick } from "@noble/hashes/utils.js";

import { ascii, type Bytes, concat } from "./encoding.js";
import { ArgumentError, FormatError, SignatureError } from "./errors.js";

const SLICE_MS = 10;
const NONCE_BYTES = 12;
export const TAG_BYTES = 16;
export const OVERHEAD = NONCE_BYTES + TAG_BYTES;
export const SALT_BYTES = 16;
export const PUBLIC_BYTES = 32;
export const SIGNATURE_BYTES = 64;
export const MIN_SCRYPT_LOG2_N = 14;
export const MAX_SCRYPT_LOG2_N = 20;

/** What long work takes: it never holds the page up for longer than some 10 ms. */
export interface WorkOptions {
  /** Aborts the work; its promise is then rejected with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Called with the part that is done, 0 … 1. */
  onProgress?: ((done: number) => void) | undefined;
}

/** A function to call between the pieces of long work; `done` is the part that is done. */
export function pacer({ signal, onProgress }: WorkOptions): (done: number) => Promise<void> {
  let last = performance.now();
  return async (done) => {
    onProgress?.(done);
    if (performance.now() - last > SLICE_MS) {
      await nextTick();
      last = performance.now();
    }
    signal?.throwIfAborted();
  };
}

export function subtle(): SubtleCrypto {
  const found = globalThis.crypto?.subtle;
  if (found === undefined) {
    throw new ArgumentError(
      "There is no WebCrypto here: serve the page over HTTPS, or from localhost while you " +
        "develop; in node, use version 20 or newer.",
    );
  }
  return found;
}

/** SHA-256 of a tag, a zero byte and the data. */
export async function taggedDigest(tag: string, data: Uint8Array): Promise<Bytes> {
  const message = concat(ascii(`encryip ${tag}\0`), data);
  return new Uint8Array(await subtle().digest("SHA-256", message));
}

/** HKDF-SHA256 (RFC 5869), `length` bytes. */
export async function hkdf(material: Bytes, salt: Bytes, info: Bytes, length = 32): Promise<Bytes> {
  const key = await subtle().importKey("raw", material, "HKDF", false, ["deriveBits"]);
  const parameters = { name: "HKDF", hash: "SHA-256", salt, info };
  return new Uint8Array(await subtle().deriveBits(parameters, key, 8 * length));
}

/** HMAC-SHA256 (RFC 2104). */
export async function hmac(key: Bytes, data: Bytes): Promise<Bytes> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await subtle().importKey("raw", key, algorithm, false, ["sign"]);
  return new Uint8Array(await subtle().sign("HMAC", imported, data));
}

/** Open AES-256-GCM: nonce (12) ‖ ciphertext ‖ tag (16). Throws `SignatureError` for all causes. */
export async function unseal(key: Bytes, sealed: Bytes, associatedData: Bytes): Promise<Bytes> {
  const imported = await subtle().importKey("raw", key, "AES-GCM", false, ["decrypt"]);
  let plaintext: Bytes | undefined;
  if (sealed.length >= OVERHEAD) {
    const iv = sealed.subarray(0, NONCE_BYTES);
    const parameters = { name: "AES-GCM", iv, additionalData: associatedData };
    try {
      const opened = await subtle().decrypt(parameters, imported, sealed.subarray(NONCE_BYTES));
      plaintext = new Uint8Array(opened);
    } catch {
      // said below
    }
  }
  if (plaintext === undefined) {
    throw new SignatureError("The sealed data cannot be opened with this key, or was changed.");
  }
  return plaintext;
}

/** Open AES-CBC with the padding of PKCS #7, which tells most wrong keys: then `undefined`. */
export async function decryptCbc(key: Bytes, iv: Bytes, data: Bytes): Promise<Bytes | undefined> {
  const imported = await subtle().importKey("raw", key, "AES-CBC", false, ["decrypt"]);
  try {
    return new Uint8Array(await subtle().decrypt({ name: "AES-CBC", iv }, imported, data));
  } catch {
    return undefined;
  }
}

/** AES-256 of the 16-byte blocks first, first + 1, … (big-endian): counter mode's key stream. */
export async function aesBlocks(key: Bytes, first: number, count: number): Promise<Bytes> {
  const imported = await subtle().importKey("raw", key, "AES-CTR", false, ["encrypt"]);
  const counter = new Uint8Array(16);
  new DataView(counter.buffer).setUint32(12, first);
  const parameters = { name: "AES-CTR", counter, length: 128 };
  return new Uint8Array(await subtle().encrypt(parameters, imported, new Uint8Array(16 * count)));
}

/** Check an Ed25519 signature (RFC 8032) over the domain and the message's SHA-512. */
export async function verify(
  publicKey: Bytes,
  domain: string,
  message: string,
  signature: Bytes,
  what: string,
): Promise<void> {
  const digest = new Uint8Array(await subtle().digest("SHA-512", ascii(message)));
  const signed = concat(ascii(`encryip ${domain}\0`), digest);
  let good = false;
  try {
    good = ed25519.verify(signature, signed, publicKey, { zip215: false });
  } catch {
    // not a key, or not a signature
  }
  if (!good) {
    throw new SignatureError(
      `The signature of the ${what} is wrong: it was changed, or is forged.`,
    );
  }
}

// --- keys from passphrases ---------------------------------------------------

/** The passphrase as NFC-normalised UTF-8: the same from every keyboard. */
export function passphraseBytes(passphrase: string): Bytes {
  if (typeof passphrase !== "string" || passphrase === "") {
    throw new ArgumentError("`passphrase` must be a string that is not empty.");
  }
  if (/\p{Surrogate}/u.test(passphrase)) {
    throw new ArgumentError("`passphrase` is not Unicode text: half a character is missing.");
  }
  return ascii(passphrase.normalize("NFC"));
}

/** scrypt (RFC 7914), `length` bytes; `what` asks for its cost. */
export async function scryptKey(
  password: Bytes,
  salt: Bytes,
  { N, r, p }: { N: number; r: number; p: number },
  length: number,
  what: string,
  { signal, onProgress }: WorkOptions,
): Promise<Bytes> {
  const settings = { N, r, p, dkLen: length, maxmem: 128 * r * (N + p + 1) };
  const report = (done: number): void => {
    signal?.throwIfAborted();
    onProgress?.(done);
  };
  try {
    return new Uint8Array(await scryptAsync(password, salt, { ...settings, onProgress: report }));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // aborted, or onProgress failed
  }
  const size = Math.ceil((128 * r * N) / 2 ** 20);
  throw new FormatError(
    `${what}: this browser does not give the ${size} MiB of memory that scrypt takes.`,
  );
}

/** PBKDF2-HMAC-SHA256 (RFC 8018), `length` bytes: one piece of work, but not the page's. */
export async function pbkdf2Key(
  password: Bytes,
  salt: Bytes,
  iterations: number,
  length: number,
  { signal, onProgress }: WorkOptions,
): Promise<Bytes> {
  signal?.throwIfAborted();
  onProgress?.(0);
  const key = await subtle().importKey("raw", password, "PBKDF2", false, ["deriveBits"]);
  const parameters = { name: "PBKDF2", hash: "SHA-256", salt, iterations };
  const aborted = new Promise<never>((_, reject) =>
    signal?.addEventListener("abort", () => reject(signal.reason)),
  );
  const derived = await Promise.race([subtle().deriveBits(parameters, key, 8 * length), aborted]);
  onProgress?.(1);
  return new Uint8Array(derived);
}
