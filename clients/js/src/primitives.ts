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
export const OVERHEAD = NONCE_BYTES + 16;
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

function subtle(): SubtleCrypto {
  const found = globalThis.crypto?.subtle;
  if (found === undefined) {
    throw new ArgumentError(
      "This page has no WebCrypto: serve it over HTTPS, or from localhost while you develop.",
    );
  }
  return found;
}

/** SHA-256 of a tag, a zero byte and the data. */
export async function taggedDigest(tag: string, data: Uint8Array): Promise<Bytes> {
  const message = concat(ascii(`encryip ${tag}\0`), data);
  return new Uint8Array(await subtle().digest("SHA-256", message));
}

/** HKDF-SHA256 (RFC 5869), 32 bytes. */
export async function hkdf(material: Bytes, salt: Bytes, purpose: string): Promise<Bytes> {
  const key = await subtle().importKey("raw", material, "HKDF", false, ["deriveBits"]);
  const parameters = { name: "HKDF", hash: "SHA-256", salt, info: ascii(purpose) };
  return new Uint8Array(await subtle().deriveBits(parameters, key, 256));
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

/** scrypt (RFC 7914) over the NFC-normalised UTF-8 passphrase, r = 8, p = 1, N = 2^log2N. */
export async function passphraseKey(
  passphrase: string,
  salt: Bytes,
  log2N: number,
  { signal, onProgress }: WorkOptions,
): Promise<Bytes> {
  if (typeof passphrase !== "string" || passphrase === "") {
    throw new ArgumentError("`passphrase` must be a string that is not empty.");
  }
  if (/\p{Surrogate}/u.test(passphrase)) {
    throw new ArgumentError("`passphrase` is not Unicode text: half a character is missing.");
  }
  const N = 2 ** log2N;
  const settings = { N, r: 8, p: 1, dkLen: 32, maxmem: 128 * 8 * (N + 2) };
  const report = (done: number): void => {
    signal?.throwIfAborted();
    onProgress?.(done);
  };
  try {
    const password = ascii(passphrase.normalize("NFC"));
    return new Uint8Array(await scryptAsync(password, salt, { ...settings, onProgress: report }));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // aborted, or onProgress failed
  }
  throw new FormatError(
    `Field scrypt_log2_n is ${log2N}: this browser does not give the ${N >> 10} MiB that it takes.`,
  );
}
