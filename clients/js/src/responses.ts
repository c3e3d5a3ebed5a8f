/** Model outputs as they come over the wire: TF Serving's JSON, and encrypted responses. */

import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";

import { type Bytes, decodeBase64 } from "./encoding.js";
import { ArgumentError, FormatError, SignatureError } from "./errors.js";

const OURS = ["confused", "encrypted", "ciphertext_bytes"];
const NONCE_BYTES = 24;
/** An encrypted response of N confused labels has N + 10 words: 6 of nonce, 4 of tag. */
export const EXTRA_WORDS = 10;

/** What a model server answered. */
export type Answer =
  | {
      kind: "outputs";
      /** One row for each prediction: N confused labels, or N + 10 words if encrypted. */
      rows: number[][];
    }
  | {
      kind: "ciphertexts";
      /** Label ciphertexts, of the signature `encrypted_label`. */
      ciphertexts: Bytes[];
    };

/**
 * Read the JSON that TF Serving's REST API answers to `:predict`.
 *
 * Row format (`predictions`) and column format (`outputs`) are understood, with the plain tensor or
 * one of the named outputs `confused`, `encrypted`, `ciphertext_bytes`.
 *
 * Throws `FormatError` if it is no such response; TF Serving's own error is quoted.
 */
export function parseResponse(json: string): Answer {
  let response: unknown;
  try {
    response = JSON.parse(json);
  } catch {
    // said below
  }
  if (!isObject(response)) throw new FormatError("The response is not a JSON object.");
  if ("error" in response) {
    const quoted = String(response["error"]).slice(0, 500);
    throw new FormatError(`The model server reported an error: ${quoted}`);
  }
  let rows = response["predictions" in response ? "predictions" : "outputs"];
  if (isObject(rows)) rows = ourOutput(rows);
  else if (Array.isArray(rows) && isObject(rows[0]) && !("b64" in rows[0])) {
    rows = rows.map(ourOutput);
  }
  if (!Array.isArray(rows) || rows.length === 0) {
    throw new FormatError(
      "The response has no `predictions` (row format) or `outputs` (column format).",
    );
  }
  if (isObject(rows[0])) return { kind: "ciphertexts", ciphertexts: rows.map(ciphertext) };
  const width = Array.isArray(rows[0]) ? rows[0].length : 0;
  const isRow = (row: unknown): row is number[] =>
    Array.isArray(row) && row.length === width && row.every((x) => typeof x === "number");
  if (width === 0 || !rows.every(isRow)) {
    throw new FormatError("The predictions in the response are not a table of numbers.");
  }
  return { kind: "outputs", rows };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The one output of ours among named ones. */
function ourOutput(outputs: unknown): unknown {
  const found = isObject(outputs) ? OURS.filter((name) => Object.hasOwn(outputs, name)) : [];
  if (found.length !== 1) {
    throw new FormatError(
      "The response must hold the output `confused`, `encrypted` or `ciphertext_bytes` of a " +
        "protected model.",
    );
  }
  return (outputs as Record<string, unknown>)[found[0]!];
}

function ciphertext(row: unknown): Bytes {
  if (!isObject(row) || typeof row["b64"] !== "string") {
    throw new FormatError("The response mixes ciphertexts with something else.");
  }
  return decodeBase64(row["b64"], "b64");
}

/** Decrypt and check one encrypted response: N float32 from N + 10 words of 32 bits. */
export function openResponse(
  words: ArrayLike<number>,
  key: Bytes,
  associatedData: Bytes,
): Float32Array {
  const data = new DataView(new ArrayBuffer(4 * words.length));
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    if (!Number.isInteger(word) || word < -(2 ** 31) || word >= 2 ** 32) {
      throw new ArgumentError("Encrypted responses must hold 32-bit words.");
    }
    data.setUint32(4 * i, word, true);
  }
  const bytes = new Uint8Array(data.buffer);
  const nonce = bytes.subarray(0, NONCE_BYTES);
  let plaintext: Uint8Array | undefined;
  try {
    const cipher = xchacha20poly1305(key, nonce, associatedData);
    plaintext = cipher.decrypt(bytes.subarray(NONCE_BYTES));
  } catch {
    // said below
  }
  if (plaintext === undefined) {
    throw new SignatureError(
      "A response cannot be opened with this key, belongs to another model version, or was changed.",
    );
  }
  const floats = new DataView(plaintext.buffer, plaintext.byteOffset, plaintext.byteLength);
  const confused = new Float32Array(plaintext.length / 4);
  for (let j = 0; j < confused.length; j++) confused[j] = floats.getFloat32(4 * j, true);
  return confused;
}
