/** Rows and ciphertexts in, classes out; and what is no answer. */

import assert from "node:assert/strict";
import { before, test } from "node:test";

import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";

import { KeyBundle } from "../src/bundle.js";
import { Codebook } from "../src/codebook.js";
import { Decoder } from "../src/decoder.js";
import { encodeBase64 } from "../src/encoding.js";
import { X25519PrivateKey } from "../src/keypair.js";
import { markOf, UNITS } from "../src/mark.js";
import { parseResponse } from "../src/responses.js";
import { Authority, PASSPHRASE, read } from "./files.js";

const CLASSES = [0, 1, 2, 2, 1, 0, 1, 1];
const TO_PUBLIC_KEY = read("public_key_bundle.json");
const METADATA = { class_names: ["cat", "dog", "bug"], model: "pets", notes: "" };
const ROWS = [
  [0.5, 0.25, 0, 0, 0, 0.25, 0, 0],
  [0, 0.125, 0.125, 0, 0.5, 0, 0.125, 0.125],
  [0, 0, 0.5, 0.25, 0, 0.25, 0, 0],
];

/** All that takes rows. */
const READERS: ((opened: Decoder, rows: any, options?: any) => unknown[])[] = [
  (opened, rows, options) => opened.probabilities(rows, options),
  (opened, rows, options) => opened.labels(rows, options),
  (opened, rows, options) => opened.names(rows, options),
  (opened, rows, options) => opened.topK(rows, 2, options),
];

let acme: Authority;
let codebook: Codebook;
let decoder: Decoder;
let bundle: string;
let responseKey: Uint8Array<ArrayBuffer>;

before(async () => {
  acme = new Authority();
  const alice = acme.issue();
  const file = await acme.codebook(CLASSES, METADATA);
  bundle = await acme.bundle(alice);
  codebook = Codebook.parse(file);
  decoder = await Decoder.open(file, bundle, PASSPHRASE);
  const { reader } = await (await KeyBundle.parse(bundle)).unlock(PASSPHRASE);
  responseKey = await (await codebook.secret(reader)).derive("hosted responses v2");
});

function encrypt(row: number[], nonce: number): number[] {
  const start = new Uint8Array(24).fill(nonce);
  const cipher = xchacha20poly1305(responseKey, start, codebook.codebookId);
  const sealed = cipher.encrypt(new Uint8Array(Float32Array.from(row).buffer));
  return [...new Int32Array(new Uint8Array([...start, ...sealed]).buffer)];
}

test("probabilities, labels, names, the k best", () => {
  assert.deepEqual(
    decoder.probabilities(ROWS).map((row) => [...row]),
    [
      [0.75, 0.25, 0],
      [0, 0.875, 0.125],
      [0.25, 0, 0.75],
    ],
  );
  assert.deepEqual(decoder.labels(ROWS.map((row) => Float32Array.from(row))), [0, 1, 2]);
  assert.deepEqual(decoder.names(ROWS), ["cat", "dog", "bug"]);
  assert.deepEqual(decoder.topK(ROWS, 2)[2], [
    { label: 2, name: "bug", probability: 0.75 },
    { label: 0, name: "cat", probability: 0.25 },
  ]);
  assert.deepEqual(
    decoder.topK([new Array(8).fill(1 / 8)], 3)[0]!.map((g) => g.label),
    [1, 0, 2],
  );
  assert.deepEqual(decoder.labels([]), []);
  for (const k of [0, 4, 1.5]) {
    assert.throws(() => decoder.topK(ROWS, k), { name: "ArgumentError", message: /in 1 … 3\./ });
  }
});

test("rows of another length are refused", () => {
  for (const row of [[], ROWS[0]!.slice(1), [...ROWS[0]!, 0], new Array(19).fill(0)]) {
    const message = /must hold 8 numbers each, the outputs of model 'pets'\. Received: a row of/;
    assert.throws(() => decoder.probabilities([row]), { name: "ArgumentError", message });
  }
});

test("rows that no model has for outputs are refused, and named", () => {
  const rounded = { quantised: true };
  const sum = (value: number): number[] => [value, 0, 0, 0, 0, 0, 0, 0];
  for (const read of READERS) {
    for (const [row, said] of [
      [sum(0), "the sum 0 and the least value 0"],
      [sum(2), "the sum 2 and the least value 0"],
      [sum(0.98), "the sum 0.98 and the least value 0"],
      [sum(1.011), "the sum 1.011 and the least value 0"],
      [[1.0011, -0.0011, 0, 0, 0, 0, 0, 0], "the sum 1 and the least value -0.0011"],
      [[-4, 3, 5, 1, -7, 0, 2, 8], "the sum 8 and the least value -7"],
      [[128, 0, 0, 0, 127, 0, 0, 0], "the sum 255 and the least value 0"],
    ] as const) {
      const expected = new RegExp(
        `at least 0 and 1 in sum\\. Pass \`{ quantised: true }\` .* rows\\[2\\] with ${said}$`,
      );
      for (const given of [row, Float64Array.from(row), encrypt([...row], 1)]) {
        const rows = [ROWS[0], ROWS[1], given];
        assert.throws(
          () => read(decoder, rows),
          (error: Error) => {
            assert.equal(error.name, "ArgumentError");
            assert.match(error.message.replace(/0\.98\d+/, "0.98"), expected);
            return true;
          },
        );
        assert.equal(read(decoder, rows, rounded).length, 3);
      }
    }
    for (const bad of [NaN, Infinity, -Infinity, 1e39, "0.5", null, undefined, 1n, [0.5], {}]) {
      const row = [0.5, bad, 0.5, 0, 0, 0, 0, 0];
      const message = /finite numbers, also with .*rows\[1\] with NaN, infinity or no number$/;
      for (const options of [undefined, rounded]) {
        const call = (): unknown => read(decoder, [ROWS[0], row], options);
        assert.throws(call, { name: "ArgumentError", message });
      }
    }
    // Together more than a float32 holds; and holes.
    for (const row of [[3e38, 3e38, 0, 0, 0, 0, 0, 0], new Array(8)]) {
      const message = /rows\[0\] with NaN, infinity or/;
      assert.throws(() => read(decoder, [row], rounded), { name: "ArgumentError", message });
    }
  }
  for (const row of [sum(0.9901), sum(1.0099), [1.0009, -0.0009, 0, 0, 0, 0, 0, 0]]) {
    assert.deepEqual(decoder.labels([row]), [0]);
  }
});

test("what are no rows is refused", () => {
  for (const rows of [undefined, null, 5, "text", {}, ROWS[0]![0], Float32Array.from(ROWS[0]!)]) {
    const message = /^`rows` must be an array of rows/;
    assert.throws(() => decoder.labels(rows as any), { name: "ArgumentError", message });
  }
  for (const row of [undefined, null, 5, {}, new Array(1)[0]]) {
    const message = /must hold 8 numbers each, .* Received: a row of no length$/;
    assert.throws(() => decoder.labels([row as any]), { name: "ArgumentError", message });
  }
  assert.throws(() => decoder.labels(new Array(1)), { name: "ArgumentError" });
});

test("answers of another version of the model are noticed", async () => {
  const classes = Array.from({ length: 40 }, (_, j) => j % 3);
  const files = await Promise.all([0, 1].map(() => acme.codebook(classes, METADATA)));
  const [own, other] = files.map((file) => {
    const { modulus, residues } = markOf(Codebook.parse(file).codebookId, classes.length);
    const row = residues.map((residue) => (UNITS / residues.length + residue) / UNITS);
    assert.equal((UNITS / residues.length) % modulus, 0);
    return [...row, ...new Array(classes.length - row.length).fill(0)];
  });
  const opened = await Decoder.open(files[0]!, bundle, PASSPHRASE);
  assert.equal(opened.labels([own!, own!]).length, 2);
  assert.equal(opened.labels([other!.map((value) => value * 1.001)]).length, 1); // no mark is left
  const message = /^The outputs are of another version of model 'pets'\. Open the codebook of/;
  for (const options of [{}, { quantised: true }]) {
    const rows = [own!, Float32Array.from(other!)];
    for (const read of READERS) {
      const call = (): unknown => read(opened, rows, options);
      assert.throws(call, { name: "WrongModelError", message });
    }
  }
});

test("encrypted responses, signed and unsigned words", () => {
  const words = ROWS.map(encrypt);
  assert.deepEqual(decoder.names(words), ["cat", "dog", "bug"]);
  assert.deepEqual(decoder.names(words.map((row) => Uint32Array.from(row))), ["cat", "dog", "bug"]);
});

test("every word of an encrypted response counts", async () => {
  const words = encrypt(ROWS[0]!, 7);
  for (let place = 0; place < words.length; place++) {
    const changed = words.with(place, words[place]! ^ (1 << 17));
    const message = /cannot be opened with this key, belongs to another model version, or was/;
    assert.throws(() => decoder.labels([changed]), { name: "SignatureError", message });
  }
  const swapped = [...words.slice(0, 6), ...encrypt(ROWS[1]!, 8).slice(6)];
  assert.throws(() => decoder.labels([swapped]), { name: "SignatureError" });
  for (const wrong of [0.5, NaN, 2 ** 32, -(2 ** 31) - 1]) {
    const changed = words.with(3, wrong);
    assert.throws(() => decoder.labels([changed]), { name: "ArgumentError", message: /32-bit/ });
  }
  const other = await Decoder.open(await acme.codebook(CLASSES, METADATA), bundle, PASSPHRASE);
  assert.throws(() => other.labels([words]), { name: "SignatureError" });
});

test("label ciphertexts, by decoder and by bundle", async () => {
  const ciphertexts = CLASSES.map((_, label) => codebook.ciphertext(label));
  assert.deepEqual(decoder.decrypt(ciphertexts), CLASSES);
  const parsed = await KeyBundle.parse(bundle);
  assert.deepEqual(await parsed.decrypt(ciphertexts, PASSPHRASE), CLASSES);
  const own = await X25519PrivateKey.parse(TO_PUBLIC_KEY.private_key_pem, TO_PUBLIC_KEY.passphrase);
  const toOwn = await acme.bundle(acme.issue(), {}, { publicKey: own.publicKey.raw });
  assert.deepEqual(await (await KeyBundle.parse(toOwn)).decrypt(ciphertexts, own), CLASSES);
  const later = Codebook.parse(await acme.codebook(CLASSES, METADATA));
  const message = /does not belong to this version of model 'pets'/;
  assert.throws(() => decoder.decrypt([later.ciphertext(3)]), { name: "WrongModelError", message });
  assert.deepEqual(await parsed.decrypt([later.ciphertext(3)], PASSPHRASE), [2]);
  const foreign = Codebook.parse(await new Authority().codebook(CLASSES, METADATA));
  const opened = parsed.decrypt([foreign.ciphertext(0)], PASSPHRASE);
  await assert.rejects(opened, { name: "ForeignKeyError" });
  const past = await acme.bundle(acme.issue(), { not_after: "2025-01-01T00:00:00Z" });
  const expired = (await KeyBundle.parse(past)).decrypt(ciphertexts, "");
  await assert.rejects(expired, { name: "ExpiredKeyError" });
});

test("trace labels read as the user's bits say, in tables and in ciphertexts", async () => {
  const classes = [0, [1, 2], 2, [0, 2], [2, 1], 1, [0, 1], [1, 0]] as (
    number | [number, number]
  )[];
  const file = await acme.codebook(classes, METADATA);
  for (const bits of [0b00000000, 0b11111111, 0b01011001]) {
    const issued = await acme.bundle(acme.issue(new Uint8Array(32).fill(bits)));
    const expected = classes.map((pair, j) =>
      Array.isArray(pair) ? pair[(bits >> (7 - j)) & 1] : pair,
    );
    const opened = await Decoder.open(file, issued, PASSPHRASE);
    assert.deepEqual([...opened.secretTable()], expected);
    const ciphertexts = classes.map((_, label) => Codebook.parse(file).ciphertext(label));
    const parsed = await KeyBundle.parse(issued);
    assert.deepEqual(await parsed.decrypt(ciphertexts, PASSPHRASE), expected);
  }
});

test("slots are masked, and taken modulo the key's", async () => {
  // Labels of one slot, in two codebooks: the fields say nothing of that.
  const classes = CLASSES.map((_, j) => j % 3);
  const files = [0, 1].map(() => acme.codebook(classes, METADATA));
  const [first, second] = (await Promise.all(files)).map((file) => Codebook.parse(file));
  assert.notDeepEqual(first!.maskedSlots, second!.maskedSlots);
  for (const parsed of [first!, second!]) {
    const ciphertexts = classes.map((_, label) => parsed.ciphertext(label));
    for (const data of ciphertexts) data[data.length - 14]! ^= 0xff; // 65,280 = 255 · 256
    const read = await (await KeyBundle.parse(bundle)).decrypt(ciphertexts, PASSPHRASE);
    assert.deepEqual(read, classes);
  }
});

test("any slot field is read: classes stay legal", async () => {
  for (const fill of [0, 1, 0xff]) {
    const body = { slots: encodeBase64(new Uint8Array(2 * CLASSES.length).fill(fill)) };
    const file = await acme.codebook(CLASSES, METADATA, { body });
    const table = (await Decoder.open(file, bundle, PASSPHRASE)).secretTable();
    assert.ok(table.every((found) => found >= 0 && found < 3));
  }
});

test("a ciphertext of release 0.3 is told so", () => {
  for (const [version, message] of [
    [1, /version 1 is not read by this release, which reads 2\. Release 0\.3 of keras_encryip r/],
    [3, /version 3 is not read by this release, which reads 2\.$/],
  ] as const) {
    const old = codebook.ciphertext(0).with(0, version);
    assert.throws(() => decoder.decrypt([old]), { name: "FormatError", message });
  }
});

test("a revoked key reads no ciphertext", async () => {
  const bob = acme.issue();
  const file = await acme.codebook(CLASSES, METADATA, { revoked: [bob] });
  const ciphertext = Codebook.parse(file).ciphertext(0);
  const parsed = await KeyBundle.parse(await acme.bundle(bob));
  await assert.rejects(parsed.decrypt([ciphertext], PASSPHRASE), { name: "RevokedKeyError" });
});

test("answers in row and column format, plain and named", () => {
  const rows = [
    [0.5, 1],
    [0, 1e-3],
  ];
  const table = JSON.stringify(rows);
  const named = JSON.stringify(rows.map((confused) => ({ confused, other: [1] })));
  for (const body of [
    `{"predictions": ${table}}`,
    `{"outputs": ${table}}`,
    `{"predictions": ${named}}`,
    `{"outputs": {"encrypted": ${table}, "more": 1}}`,
  ]) {
    assert.deepEqual(parseResponse(body), { kind: "outputs", rows });
  }
  const ciphertexts = [68, 200].map((length) => new Uint8Array(length).fill(length));
  const encoded = ciphertexts.map((data) => ({ b64: encodeBase64(data) }));
  for (const body of [
    { predictions: encoded },
    { predictions: encoded.map((data) => ({ ciphertext_bytes: data })) },
    { outputs: { ciphertext_bytes: encoded } },
  ]) {
    assert.deepEqual(parseResponse(JSON.stringify(body)), { kind: "ciphertexts", ciphertexts });
  }
});

test("what is no answer", () => {
  for (const [body, message] of [
    ["<html>", /not a JSON object/],
    ["[[1]]", /not a JSON object/],
    ['{"error": "Servable not found"}', /server reported an error: Servable not found$/],
    ['{"predictions": [1, 2]}', /not a table of numbers/],
    ['{"predictions": [[]]}', /not a table of numbers/],
    ['{"predictions": [[[1]]]}', /not a table of numbers/],
    ['{"predictions": [[1, "2"]]}', /not a table of numbers/],
    ['{"predictions": [[1, null]]}', /not a table of numbers/],
    ['{"predictions": null, "outputs": [[1]]}', /no `predictions`/],
    ['{"predictions": [{"__proto__": [1]}]}', /must hold the output/],
  ] as const) {
    assert.throws(() => parseResponse(body), { name: "FormatError", message });
  }
  const long = JSON.stringify({ error: "x".repeat(10_000) });
  assert.throws(
    () => parseResponse(long),
    (error: Error) => error.message.length < 600,
  );
});
