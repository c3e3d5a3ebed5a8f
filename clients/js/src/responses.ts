/** Model outputs as they come over the wire: TF Serving's JSON, and encrypted responses. */

import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";

import { MIN_BYTES } from "./ciphertext.js";
import { type Bytes, decodeBase64 } from "./encoding.js";
import { ArgumentError, FormatError, SignatureError } from "./errors.js";
import { parts, space, type Span, span, string } from "./scan.js";

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
 * one of the named outputs `confused`, `encrypted`, `ciphertext_bytes`. What else is in the answer
 * is passed over, and takes no memory.
 *
 * Throws `FormatError` if it is no such response; TF Serving's own error is quoted.
 */
export function parseResponse(json: string): Answer {
  if (typeof json !== "string") {
    throw new ArgumentError("`json` must be the text of the response, e.g. `await r.text()`.");
  }
  const start = space(json, 0);
  if (json[start] !== "{" || space(json, span(json, start).end) < json.length) {
    throw new FormatError("The response is not a JSON object.");
  }
  const top = named(json, start, ["error", "predictions", "outputs"]);
  const error = top.get("error");
  if (error !== undefined) {
    const { start: from, end } = error;
    const said = json[from] === '"' ? string(json, error) : json.slice(from, end);
    throw new FormatError(`The model server reported an error: ${said.slice(0, 500)}`);
  }
  let table = top.get("predictions") ?? top.get("outputs");
  if (table !== undefined && json[table.start] === "{") table = ourOutput(json, table);
  const cells = table !== undefined && json[table.start] === "[" ? parts(json, table.start) : [];
  const rows: number[][] = [];
  const ciphertexts: Bytes[] = [];
  let inside: boolean | undefined; // the rows are outputs among named ones
  for (const part of cells) {
    inside ??= json[part.start] === "{" && !named(json, part.start, ["b64"]).has("b64");
    const cell = inside ? ourOutput(json, part) : part;
    if (json[cell.start] === "{" ? rows.length > 0 : ciphertexts.length > 0) mixed();
    if (json[cell.start] === "{") ciphertexts.push(ciphertext(json, cell));
    else rows.push(readRow(json, cell, rows));
  }
  if (ciphertexts.length > 0) return { kind: "ciphertexts", ciphertexts };
  if (rows.length > 0) return { kind: "outputs", rows };
  throw new FormatError(
    "The response has no `predictions` (row format) or `outputs` (column format).",
  );
}

/** Those members of an object that have these names; the last of each. */
function named(json: string, start: number, names: readonly string[]): Map<string, Span> {
  const found = new Map<string, Span>();
  for (const { name, ...value } of parts(json, start)) {
    if (names.includes(name!)) found.set(name!, value);
  }
  return found;
}

/** The one output of ours among named ones. */
function ourOutput(json: string, { start }: Span): Span {
  const found = json[start] === "{" ? [...named(json, start, OURS).values()] : [];
  if (found.length === 1) return found[0]!;
  throw new FormatError(
    "The response must hold the output `confused`, `encrypted` or `ciphertext_bytes` of a " +
      "protected model.",
  );
}

function ciphertext(json: string, { start }: Span): Bytes {
  const base64 = named(json, start, ["b64"]).get("b64");
  if (base64 === undefined || json[base64.start] !== '"') mixed();
  const data = decodeBase64(string(json, base64), "b64");
  if (data.length > MIN_BYTES) return data;
  throw new FormatError(`A label ciphertext has a wrong length: ${data.length} bytes.`);
}

function mixed(): never {
  throw new FormatError("The response mixes ciphertexts with something else.");
}

/** A row of numbers, as many as the rows before it have. */
function readRow(json: string, { start, end, flat }: Span, before: readonly number[][]): number[] {
  const refuse = (why: string): never => {
    throw new FormatError(
      `The predictions in the response are not a table of numbers: row ${before.length} ${why}.`,
    );
  };
  let row: unknown;
  const text = flat && json[start] === "[" ? json.slice(start, end) : refuse("is no list of them");
  try {
    row = JSON.parse(text);
  } catch {
    // said below
  }
  if (!Array.isArray(row)) return refuse("holds NaN, infinity or something else");
  if (row.length === 0) return refuse("is empty");
  const width = before[0]?.length ?? row.length;
  if (row.length !== width) return refuse(`has ${row.length}, and row 0 has ${width}`);
  if (!row.every(Number.isFinite)) return refuse("holds NaN, infinity or something else");
  return row;
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
      "A response cannot be opened with this key, belongs to another model version, or was " +
        "changed.",
    );
  }
  const floats = new DataView(plaintext.buffer, plaintext.byteOffset, plaintext.byteLength);
  const confused = new Float32Array(plaintext.length / 4);
  for (let j = 0; j < confused.length; j++) confused[j] = floats.getFloat32(4 * j, true);
  return confused;
}
