/**
 * Bytes on the outside: canonical JSON, canonical base64.
 *
 * Files are hostile until proven otherwise, so every reader here bounds the length first, refuses
 * unknown fields and types, and accepts exactly one spelling of each value: what was read is
 * written again and must be equal. docs/formats/codebook.md, section 1.
 */

import { ArgumentError, FormatError } from "./errors.js";

/** Bytes of this page's own memory, which WebCrypto takes. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** A field's check: returns the value with its type, or throws `FormatError`. */
export type Check<T> = (value: unknown, where: string) => T;

// --- bytes -------------------------------------------------------------------

export const ascii = (text: string): Bytes => new TextEncoder().encode(text);

export function concat(...parts: Uint8Array[]): Bytes {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

export const equal = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, i) => byte === b[i]);

export const hex = (data: Uint8Array): string =>
  Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");

export const fromHex = (text: string): Bytes =>
  Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

/** Bytes as functions take them, also of other frames; node's `Buffer` is a `Uint8Array`. */
export type ByteSource = Uint8Array | ArrayBuffer;

/** A file as functions take it: text, bytes, or what an `<input type="file">` gives. */
export type FileSource = string | ByteSource | Blob;

/** The name of a value's class; `instanceof` does not know those of other frames. */
const kind = (value: unknown): string => Object.prototype.toString.call(value).slice(8, -1);

/** A copy of bytes: what is checked is what is used, whatever the caller does with them. */
export function readBytes(data: unknown, what: string, forms = "a Uint8Array"): Bytes {
  const found = kind(data);
  if (found !== "Uint8Array" && found !== "ArrayBuffer") {
    throw new ArgumentError(`The ${what} must be ${forms} or ArrayBuffer. Received: ${found}`);
  }
  try {
    const view = new Uint8Array(data as ArrayBuffer);
    return found === "ArrayBuffer" ? view.slice() : view;
  } catch {
    throw new ArgumentError(`The ${what} is gone: its ArrayBuffer was transferred elsewhere.`);
  }
}

export const isBlob = (data: unknown): data is Blob => ["Blob", "File"].includes(kind(data));

export async function readBlob(blob: Blob, what: string, maxBytes: number): Promise<Bytes> {
  checkSize(blob.size, what, maxBytes);
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch {
    throw new FormatError(`The ${what} cannot be read: choose its file anew.`);
  }
}

/** The text or bytes of a file of at most `maxBytes`. */
export async function readFile(
  data: unknown,
  what: string,
  maxBytes: number,
): Promise<string | Bytes> {
  if (typeof data === "string") return data;
  if (isBlob(data)) return readBlob(data, what, maxBytes);
  checkSize((data as Partial<ArrayBuffer> | null | undefined)?.byteLength ?? 0, what, maxBytes);
  return readBytes(data, what, "text, or bytes in a Blob, File, Uint8Array");
}

export function checkSize(size: number, what: string, maxBytes: number): void {
  if (size <= maxBytes) return;
  throw new FormatError(`The ${what} is too large: ${size} bytes, at most ${maxBytes}.`);
}

/** The text of an ASCII file of at most `maxBytes`, given as text or bytes. */
export function asciiText(data: string | Uint8Array, what: string, maxBytes: number): string {
  checkSize(data.length, what, maxBytes);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // it is not passed over
  const text = typeof data === "string" ? data : decoder.decode(data);
  if (text.startsWith("\ufeff") || text.includes("\r")) {
    throw new FormatError(
      `The ${what} was saved by an editor, with a byte order mark or the line ends of Windows. ` +
        "Use the file as it was made.",
    );
  }
  // A character beyond ASCII makes these lengths differ.
  if (typeof data === "string" ? ascii(text).length !== text.length : text.length !== data.length) {
    throw new FormatError(`The ${what} is malformed: it is not ASCII text.`);
  }
  return text;
}

// --- base64 ------------------------------------------------------------------

export function encodeBase64(data: Uint8Array): string {
  let binary = "";
  for (let at = 0; at < data.length; at += 0x8000) {
    binary += String.fromCharCode(...data.subarray(at, at + 0x8000));
  }
  return btoa(binary);
}

/** Decode canonical base64, of an exact number of bytes if `length` is given. */
export function decodeBase64(text: string, what: string, length?: number): Bytes {
  let binary: string | undefined;
  try {
    binary = atob(text);
  } catch {
    // said below
  }
  if (binary === undefined || btoa(binary) !== text) {
    throw new FormatError(`Field ${what} is not canonical base64.`);
  }
  if (length !== undefined && binary.length !== length) {
    throw new FormatError(`Field ${what} has ${binary.length} bytes, expected ${length}.`);
  }
  const data = new Uint8Array(binary.length);
  for (let i = 0; i < data.length; i++) data[i] = binary.charCodeAt(i);
  return data;
}

// --- canonical JSON ----------------------------------------------------------

/** The one accepted spelling: sorted keys, no spaces, ASCII. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const fields = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${fields.map(([k, v]) => `${canonicalJson(k)}:${canonicalJson(v)}`).join(",")}}`;
  }
  return JSON.stringify(value).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Read canonical JSON strictly: `check` says which fields it has, and refuses others. */
export function parseCanonicalJson<T>(text: string, check: Check<T>, what: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new FormatError(`The ${what} is malformed: it is not JSON.`);
  }
  const checked = check(value, what);
  if (canonicalJson(checked) !== text) {
    throw new FormatError(
      `The ${what} is not in canonical form (sorted keys, no spaces, ASCII). ` +
        "Use the file as it was made.",
    );
  }
  return checked;
}

const refuse = (where: string, rule: string): never => {
  throw new FormatError(`Field ${where} must be ${rule}.`);
};

/** A string of `min` … `max` characters (code points), of a pattern if one is given. */
export const text =
  (min: number, max: number, pattern?: RegExp): Check<string> =>
  (value, where) => {
    if (typeof value !== "string" || /\p{Surrogate}/u.test(value)) {
      return refuse(where, "a string of Unicode text");
    }
    // No character has more than two units; so huge strings are not taken apart.
    const exact = max !== Infinity && value.length <= 2 * max;
    const characters = exact ? [...value].length : value.length;
    if (characters < min || characters > max) refuse(where, `${min} … ${max} characters long`);
    if (pattern !== undefined && !pattern.test(value)) refuse(where, `of the form ${pattern}`);
    return value;
  };

export const base64Text = text(0, Infinity);

export const integer =
  (min: number, max: number): Check<number> =>
  (value, where) =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      ? (value as number)
      : refuse(where, `an integer in ${min} … ${max}`);

/** One of these values. */
export const literal =
  <const T extends string | number>(...expected: T[]): Check<T> =>
  (value, where) =>
    expected.find((one) => one === value) ??
    refuse(where, expected.map((one) => JSON.stringify(one)).join(" or "));

export const list =
  <T>(item: Check<T>, min = 0, max = Infinity): Check<T[]> =>
  (value, where) => {
    if (!Array.isArray(value) || value.length < min || value.length > max) {
      return refuse(where, `a list of ${min} … ${max} entries`);
    }
    return value.map((entry, i) => item(entry, `${where}[${i}]`));
  };

/** An object with exactly these fields. */
export const object =
  <F extends Record<string, Check<unknown>>>(
    fields: F,
  ): Check<{ [K in keyof F]: ReturnType<F[K]> }> =>
  (value, where) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      return refuse(where, "a JSON object");
    }
    for (const name of Object.keys(value)) {
      if (!Object.hasOwn(fields, name)) {
        throw new FormatError(`Field ${where}.${name.slice(0, 64)} is unknown.`);
      }
    }
    const checked = Object.entries(fields).map(([name, check]) => {
      if (!Object.hasOwn(value, name)) refuse(`${where}.${name}`, "present");
      return [name, check((value as Record<string, unknown>)[name], `${where}.${name}`)];
    });
    return Object.fromEntries(checked);
  };
