/**
 * Bytes on the outside: canonical JSON, canonical base64.
 *
 * Files are hostile until proven otherwise, so every reader here bounds the length first, refuses
 * unknown fields and types, and accepts exactly one spelling of each value: what was read is
 * written again and must be equal. docs/formats/codebook.md, section 1.
 */
/** Bytes of this page's own memory, which WebCrypto takes. */
export type Bytes = Uint8Array<ArrayBuffer>;
/** A field's check: returns the value with its type, or throws `FormatError`. */
export type Check<T> = (value: unknown, where: string) => T;
export declare const ascii: (text: string) => Bytes;
export declare function concat(...parts: Uint8Array[]): Bytes;
export declare const equal: (a: Uint8Array, b: Uint8Array) => boolean;
export declare const hex: (data: Uint8Array) => string;
export declare const fromHex: (text: string) => Bytes;
/** Bytes as functions take them, also of other frames; node's `Buffer` is a `Uint8Array`. */
export type ByteSource = Uint8Array | ArrayBuffer;
/** A file as functions take it: text, bytes, or what an `<input type="file">` gives. */
export type FileSource = string | ByteSource | Blob;
/** A copy of bytes: what is checked is what is used, whatever the caller does with them. */
export declare function readBytes(data: unknown, what: string, forms?: string): Bytes;
export declare const isBlob: (data: unknown) => data is Blob;
export declare function readBlob(blob: Blob, what: string, maxBytes: number): Promise<Bytes>;
/** The text or bytes of a file of at most `maxBytes`. */
export declare function readFile(data: unknown, what: string, maxBytes: number): Promise<string | Bytes>;
export declare function checkSize(size: number, what: string, maxBytes: number): void;
/** The text of an ASCII file of at most `maxBytes`, given as text or bytes. */
export declare function asciiText(data: string | Uint8Array, what: string, maxBytes: number): string;
export declare function encodeBase64(data: Uint8Array): string;
/** Decode canonical base64, of an exact number of bytes if `length` is given. */
export declare function decodeBase64(text: string, what: string, length?: number): Bytes;
/** The one accepted spelling: sorted keys, no spaces, ASCII. */
export declare function canonicalJson(value: unknown): string;
/** Read canonical JSON strictly: `check` says which fields it has, and refuses others. */
export declare function parseCanonicalJson<T>(text: string, check: Check<T>, what: string): T;
/** A string of `min` … `max` characters (code points), of a pattern if one is given. */
export declare const text: (min: number, max: number, pattern?: RegExp) => Check<string>;
export declare const base64Text: Check<string>;
export declare const integer: (min: number, max: number) => Check<number>;
/** One of these values. */
export declare const literal: <const T extends string | number>(...expected: T[]) => Check<T>;
export declare const list: <T>(item: Check<T>, min?: number, max?: number) => Check<T[]>;
/** An object with exactly these fields. */
export declare const object: <F extends Record<string, Check<unknown>>>(fields: F) => Check<{ [K in keyof F]: ReturnType<F[K]>; }>;
