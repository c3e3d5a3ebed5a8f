/** Files and bytes in every form that pages and node hand around; and what is none of them. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { runInNewContext } from "node:vm";

import { KeyBundle } from "../src/bundle.js";
import { Codebook } from "../src/codebook.js";
import { Decoder } from "../src/decoder.js";
import { ascii, type Bytes, type FileSource } from "../src/encoding.js";
import { EncryipError } from "../src/errors.js";
import { X25519PrivateKey, X25519PublicKey } from "../src/keypair.js";
import { Authority, fromHex, PASSPHRASE, pem } from "./files.js";

const CLASSES = [0, 1, 2, 2, 1, 0];
const METADATA = { class_names: ["cat", "dog", "bug"], model: "pets", notes: "" };
const PRIVATE = pem("PRIVATE KEY", fromHex(`302e020100300506032b656e04220420${"40".repeat(32)}`));

let bundle: string;
let codebook: string;
let ciphertexts: Bytes[];

before(async () => {
  const acme = new Authority();
  codebook = await acme.codebook(CLASSES, METADATA);
  bundle = await acme.bundle(acme.issue());
  ciphertexts = CLASSES.map((_, label) => Codebook.parse(codebook).ciphertext(label));
});

/** The same bytes of another realm, as an iframe or a worker makes them. */
function foreign(data: Bytes, form: string): any {
  return runInNewContext(`const a = Uint8Array.from(data); ${form}`, { data: [...data] });
}

/** In the middle of a longer buffer. */
function inside<T extends Uint8Array>(longer: T, data: Bytes): T {
  longer.set(data, 5);
  return longer.subarray(5, 5 + data.length) as T;
}

const BYTES: ((data: Bytes) => any)[] = [
  (data) => data,
  (data) => data.buffer.slice(data.byteOffset, data.byteOffset + data.length),
  (data) => Buffer.from(data),
  (data) => inside(Buffer.alloc(data.length + 9, 1), data),
  (data) => inside(new Uint8Array(data.length + 9).fill(1), data),
  (data) => inside(new Uint8Array(new SharedArrayBuffer(data.length + 9)), data),
  (data) => foreign(data, "a"),
  (data) => foreign(data, "a.buffer"),
  (data) => foreign(data, "new Uint8Array([0, ...a, 0]).subarray(1, -1)"),
];
const FILES: ((data: Bytes) => any)[] = [
  ...BYTES,
  (data) => new Blob([data]),
  (data) => new File([data], "some.file"),
];

/** Its buffer is in another thread. */
function gone(): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(8);
  structuredClone(data, { transfer: [data.buffer] });
  return data;
}

const NO_BYTES: [any, string][] = [
  [undefined, "Undefined"],
  [null, "Null"],
  [5, "Number"],
  [{}, "Object"],
  [[1, 2], "Array"],
  [Promise.resolve(""), "Promise"],
  [new Response(""), "Response"],
  [new Uint16Array(4), "Uint16Array"],
  [new Uint8ClampedArray(4), "Uint8ClampedArray"],
  [new DataView(new ArrayBuffer(4)), "DataView"],
  [new SharedArrayBuffer(4), "SharedArrayBuffer"],
  [Symbol("x"), "Symbol"],
  [Object.create(null), "Object"],
];

test("files are read in every form", async () => {
  for (const form of FILES) {
    const [book, keys, own] = [codebook, bundle, PRIVATE].map((text) => form(ascii(text)));
    assert.deepEqual([...(await Decoder.open(book, keys, PASSPHRASE)).secretTable()], CLASSES);
    assert.equal((await KeyBundle.parse(keys)).header.subject, "alice");
    assert.ok((await X25519PrivateKey.parse(own)) instanceof X25519PrivateKey);
  }
});

test("ciphertexts and public keys are read in every form of bytes", async () => {
  const decoder = await Decoder.open(codebook, bundle, PASSPHRASE);
  const parsed = await KeyBundle.parse(bundle);
  const raw = new Uint8Array(32).fill(9);
  for (const form of FILES) {
    assert.deepEqual(await parsed.decrypt(ciphertexts.map(form), PASSPHRASE), CLASSES);
    if (!BYTES.includes(form)) continue;
    assert.deepEqual(decoder.decrypt(ciphertexts.map(form)), CLASSES);
    assert.deepEqual(decoder.decrypt(new Set(ciphertexts.map(form))), CLASSES);
    assert.deepEqual(new X25519PublicKey(form(raw)).raw, raw);
  }
});

test("what is neither text nor bytes is refused in one sentence", async () => {
  const decoder = await Decoder.open(codebook, bundle, PASSPHRASE);
  const parsed = await KeyBundle.parse(bundle);
  const file = "text, or bytes in a Blob, File, Uint8Array or ArrayBuffer";
  const bytes = "a Uint8Array or ArrayBuffer";
  const transferred = [gone(), gone().buffer];
  for (const [call, what, forms] of [
    [(wrong) => Decoder.open(wrong, bundle, PASSPHRASE), "codebook", file],
    [(wrong) => Decoder.open(codebook, wrong, PASSPHRASE), "key bundle", file],
    [(wrong) => KeyBundle.parse(wrong), "key bundle", file],
    [(wrong) => X25519PrivateKey.parse(wrong), "private key", file],
    [(wrong) => parsed.decrypt([wrong], PASSPHRASE), "label ciphertext", bytes],
    [async (wrong) => decoder.decrypt([wrong]), "label ciphertext", bytes],
    [async (wrong) => new X25519PublicKey(wrong), "public key", bytes],
  ] as [(wrong: any) => Promise<unknown>, string, string][]) {
    for (const [wrong, received] of NO_BYTES) {
      const message = `The ${what} must be ${forms}. Received: ${received}`;
      await assert.rejects(call(wrong), { name: "ArgumentError", message });
    }
    for (const wrong of transferred) {
      const message = `The ${what} is gone: its ArrayBuffer was transferred elsewhere.`;
      await assert.rejects(call(wrong), { name: "ArgumentError", message });
    }
  }
});

test("what is no list of ciphertexts is refused", async () => {
  const decoder = await Decoder.open(codebook, bundle, PASSPHRASE);
  const parsed = await KeyBundle.parse(bundle);
  for (const wrong of [undefined, null, 5, {}, ciphertexts[0], "text"] as any[]) {
    const message = /must be a list of label|The label ciphertext must be .* Received: (Num|Str)/;
    assert.throws(() => decoder.decrypt(wrong), { name: "ArgumentError", message });
    const read = parsed.decrypt(wrong, PASSPHRASE);
    await assert.rejects(read, { name: "ArgumentError", message });
  }
});

test("a file that is too large or gone is not read", async () => {
  const large: any = { size: 2 ** 28 + 1, arrayBuffer: () => assert.fail("it was read") };
  const lost: any = { size: 9, arrayBuffer: () => Promise.reject(new DOMException("gone")) };
  for (const file of [large, lost]) file[Symbol.toStringTag] = "File";
  for (const [file, message] of [
    [large, /is too large: 268435457 bytes, at most/],
    [lost, /cannot be read: choose its file anew\.$/],
  ] as [FileSource, RegExp][]) {
    for (const call of [
      () => Decoder.open(file, bundle, PASSPHRASE),
      () => KeyBundle.parse(file),
      () => X25519PrivateKey.parse(file),
    ]) {
      await assert.rejects(call, { name: "FormatError", message });
    }
  }
});

test("bytes that change while they are read change nothing", async () => {
  const data = ascii(bundle);
  const parsing = KeyBundle.parse(data);
  data.fill(0);
  assert.equal((await parsing).header.subject, "alice");
  const raw = new Uint8Array(32).fill(9);
  const key = new X25519PublicKey(raw);
  raw.fill(0);
  assert.equal(key.raw[0], 9);
});

test("signed files that an editor changed are told so", async () => {
  const message = /was saved by an editor, with a byte order mark or the line ends of Windows/;
  for (const change of [
    (text: string) => `\ufeff${text}`,
    (text: string) => text.replaceAll("\n", "\r\n"),
    (text: string) => `\ufeff${text.replaceAll("\n", "\r\n")}`,
    (text: string) => `${text}\r\n`,
  ]) {
    for (const form of [(text: string) => text, ascii]) {
      const [book, keys] = [codebook, bundle].map((text) => form(change(text)));
      await assert.rejects(KeyBundle.parse(keys!), { name: "FormatError", message });
      if (change(codebook) === codebook) continue; // it has one line
      const opened = Decoder.open(book!, bundle, PASSPHRASE);
      await assert.rejects(opened, { name: "FormatError", message });
    }
  }
});

test("names in messages are printable", async () => {
  const wild = "a\u001b[2J\u0007\r\n\u202e\u2028\u0085\ufeff\ud83d\udc1e\u200d";
  const clean = "a [2J       \ud83d\udc1e ";
  const acme = new Authority();
  const key = acme.issue();
  const book = await acme.codebook(CLASSES, { ...METADATA, model: wild });
  const opens = async (header: any, passphrase = PASSPHRASE): Promise<unknown> =>
    Decoder.open(book, await acme.bundle(key, header), passphrase);
  const other = new Authority();
  const foreign = await other.bundle(other.issue(), { issuer_name: wild });
  const decoder = (await opens({})) as Decoder;
  for (const call of [
    () => opens({ subject: wild }, "wrong"),
    () => opens({ scope: [`${wild}b`] }),
    () => opens({ scope: ["b"] }),
    () => Decoder.open(book, foreign, PASSPHRASE),
    async () => decoder.labels([[1]]),
    async () => decoder.decrypt([ciphertexts[0]!]),
    () => KeyBundle.parse(bundle.replace('"body"', JSON.stringify(wild).replace("\ufeff", ""))),
  ]) {
    await assert.rejects(call, (error: Error) => {
      assert.ok(error instanceof EncryipError, `${error.stack}`);
      assert.doesNotMatch(error.message, /[\p{C}\p{Zl}\p{Zp}]/u);
      return true;
    });
  }
  assert.equal(new EncryipError(`'${wild}'`).message, `'${clean}'`);
});

test("without WebCrypto the first call says so", async (context) => {
  const found = Object.getOwnPropertyDescriptor(globalThis, "crypto")!;
  context.after(() => Object.defineProperty(globalThis, "crypto", found));
  for (const value of [undefined, {}, { subtle: undefined }]) {
    Object.defineProperty(globalThis, "crypto", { configurable: true, value });
    for (const call of [
      () => Decoder.open(codebook, bundle, PASSPHRASE),
      () => KeyBundle.parse(bundle),
      () => X25519PrivateKey.parse(PRIVATE),
      () => X25519PrivateKey.parse(PRIVATE, PASSPHRASE),
    ]) {
      const message = /^There is no WebCrypto here: serve the page over HTTPS, .*; in node, use/;
      await assert.rejects(call, { name: "ArgumentError", message });
    }
  }
});

test("`require` gives the same module, or says what to write", () => {
  const folder = mkdtempSync(join(tmpdir(), "encryip-require-"));
  try {
    mkdirSync(join(folder, "node_modules"));
    const root = fileURLToPath(new URL("../..", import.meta.url));
    symlinkSync(root, join(folder, "node_modules/keras-encryip-client"));
    const script = `
      const client = require("keras-encryip-client");
      import("keras-encryip-client").then((module) =>
        console.log(client.Decoder === module.Decoder, typeof client.parseResponse));`;
    const node = (...flags: string[]) =>
      spawnSync(process.execPath, [...flags, "--eval", script], { cwd: folder, encoding: "utf8" });
    const without = node("--no-experimental-require-module");
    assert.match(without.stderr, /^Error: keras-encryip-client is an ES module, .*: write `await/m);
    assert.doesNotMatch(without.stderr, /ERR_/);
    if ((process.features as any).require_module) {
      assert.equal(node().stdout, "true function\n");
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
