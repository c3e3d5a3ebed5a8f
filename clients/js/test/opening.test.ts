/** Who may open what, checked in the documented order, with files made for the purpose. */

import assert from "node:assert/strict";
import { before, test, type TestContext } from "node:test";
import { inspect } from "node:util";

import { KeyBundle } from "../src/bundle.js";
import { Codebook } from "../src/codebook.js";
import { Decoder } from "../src/decoder.js";
import { type Bytes, concat, encodeBase64 } from "../src/encoding.js";
import { X25519PrivateKey } from "../src/keypair.js";
import { Authority, fromHex, PASSPHRASE, pem } from "./files.js";

const CLASSES = [0, 1, 2, 2, 1, 0, 1, 2, 0, 1, 2, 0];
const METADATA = {
  class_names: ["cat", "dog", "K\u00e4fer \u{1f41e}\x7f"],
  model: "pets",
  notes: "",
};
const ORDER = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

let acme: Authority;
let alice: Bytes;
let bob: Bytes;
let bundle: string;
let codebook: string;
let own: X25519PrivateKey;

const newPrivateKey = (): Promise<X25519PrivateKey> => {
  const secret = crypto.getRandomValues(new Uint8Array(32));
  const der = concat(fromHex("302e020100300506032b656e04220420"), secret);
  return X25519PrivateKey.parse(pem("PRIVATE KEY", der));
};

before(async () => {
  acme = new Authority();
  own = await newPrivateKey();
  [alice, bob] = [acme.issue(), acme.issue()];
  bundle = await acme.bundle(alice);
  codebook = await acme.codebook(CLASSES, METADATA, { revoked: [bob] });
});

const refused = async (opened: Promise<unknown>, name: string, message: RegExp): Promise<void> => {
  await assert.rejects(opened, (error: Error) => {
    assert.equal(error.name, name);
    assert.match(error.message, message);
    assert.equal(error.cause, undefined);
    return true;
  });
};

/** Until the test ends. */
function replaceGlobal(context: TestContext, name: string, value: unknown): void {
  const found = Object.getOwnPropertyDescriptor(globalThis, name)!;
  Object.defineProperty(globalThis, name, { configurable: true, writable: true, value });
  context.after(() => Object.defineProperty(globalThis, name, found));
}

for (const threshold of [1, 4, 64]) {
  test(`opens with a threshold of ${threshold}, from text, bytes or a parsed bundle`, async () => {
    const authority = new Authority(threshold);
    const key = authority.issue();
    const [file, book] = await Promise.all([
      authority.bundle(key),
      authority.codebook(CLASSES, METADATA),
    ]);
    const encoder = new TextEncoder();
    for (const given of [file, encoder.encode(file), await KeyBundle.parse(file)]) {
      const decoder = await Decoder.open(encoder.encode(book), given, PASSPHRASE);
      assert.deepEqual([...decoder.secretTable()], CLASSES);
      assert.deepEqual(decoder.classNames, METADATA.class_names);
      assert.equal(decoder.model, "pets");
      assert.equal(decoder.numLabels, CLASSES.length);
    }
  });
}

test("a revoked key is told so", async () => {
  const file = await acme.bundle(bob);
  const opened = Decoder.open(codebook, file, PASSPHRASE);
  await refused(opened, "RevokedKeyError", /was revoked before this model version was exported/);
});

test("a wrong passphrase is told so, and not repeated", async () => {
  const opened = Decoder.open(codebook, bundle, "wrong horse");
  await refused(
    opened,
    "PassphraseError",
    /^The passphrase does not open key bundle [0-9a-f]{16} /,
  );
  await assert.rejects(opened, (error) => !inspect(error).includes("wrong horse"));
});

test("what is no passphrase is refused", async () => {
  await refused(Decoder.open(codebook, bundle, ""), "ArgumentError", /string that is not empty/);
  const half = "half \ud800";
  await refused(Decoder.open(codebook, bundle, half), "ArgumentError", /is not Unicode text/);
});

test("dates: refused before the passphrase is tried", async () => {
  const past = await acme.bundle(alice, { not_after: "2025-01-01T00:00:00Z" });
  await refused(Decoder.open(codebook, past, ""), "ExpiredKeyError", /expired on 2025-01-01T00/);
  const future = await acme.bundle(alice, { not_before: "2998-01-01T00:00:00Z" });
  const early = Decoder.open(codebook, future, "");
  await refused(early, "ExpiredKeyError", /valid from 2998-01-01T00:00:00Z on; check this machine/);
});

test("dates: five minutes for clocks before, and the last second is inside", async () => {
  const found = await KeyBundle.parse(bundle);
  found.checkDates(new Date("2023-12-31T23:55:00Z"));
  found.checkDates(new Date("2024-01-01T00:00:00Z"));
  found.checkDates(new Date("2999-01-01T00:00:00Z"));
  assert.throws(() => found.checkDates(new Date("2023-12-31T23:54:59.999Z")), /valid from/);
  assert.throws(() => found.checkDates(new Date("2999-01-01T00:00:00.001Z")), /expired/);
});

test("scope", async () => {
  const others = await acme.bundle(alice, { scope: ["birds", "fish"] });
  const opened = Decoder.open(codebook, others, PASSPHRASE);
  await refused(opened, "WrongModelError", /is for model\(s\) birds, fish, not for 'pets'/);
  const named = await acme.bundle(alice, { scope: ["birds", "pets"] });
  assert.equal((await Decoder.open(codebook, named, PASSPHRASE)).model, "pets");
});

test("another authority's key is refused before the passphrase is tried", async () => {
  const other = new Authority();
  const file = await other.bundle(other.issue(), { issuer_name: "Other Ltd" });
  const message = /was issued by another authority \('Other Ltd'\)/;
  await refused(Decoder.open(codebook, file, ""), "ForeignKeyError", message);
});

test("another authority's key under a stolen digest: issuer, then access header", async () => {
  const other = new Authority();
  const digest = encodeBase64(await acme.digest());
  const claims = await other.bundle(other.issue(), { authority: digest });
  const message = /codebook was made by another authority than the one that issued this key/;
  await refused(Decoder.open(codebook, claims, ""), "ForeignKeyError", message);
  // Signed by the right issuer, but a point of another polynomial.
  const signed = await acme.bundle(other.issue());
  const opened = Decoder.open(codebook, signed, PASSPHRASE);
  await refused(opened, "ForeignKeyError", /does not open this codebook: another authority/);
});

test("a codebook that another signer made for this authority is refused", async () => {
  const forged = JSON.parse(codebook);
  forged.signature = new Authority().sign("codebook v2", JSON.stringify(forged.body));
  const opened = Decoder.open(JSON.stringify(forged), bundle, "");
  await refused(opened, "SignatureError", /The signature of the codebook is wrong/);
});

test("a signature for another purpose is refused", async () => {
  const forged = JSON.parse(codebook);
  forged.signature = acme.sign("key bundle v3", JSON.stringify(forged.body));
  await refused(Decoder.open(JSON.stringify(forged), bundle, ""), "SignatureError", /codebook/);
});

test("well signed, yet refused: fields of the bundle", async () => {
  for (const [header, message] of [
    [
      { version: 1 },
      /has version 1, which release 0\.3 of keras_encryip reads; this release reads 3/,
    ],
    [{ version: 2, opens_with: 1 }, /has version 2, which release 0\.3 of keras_encryip reads;/],
    [{ version: 4 }, /header\.version must be 3/],
    [{ version: "3" }, /header\.version must be 3/],
    [{ opens_with: "private key" }, /bundle\.body\.salt is unknown/],
    [{ opens_with: "a key" }, /opens_with must be "passphrase" or "private key"/],
    [{ roles: [] }, /roles must be a list of 1 … 2/],
    [{ roles: ["read", "read"] }, /roles must be sorted, and hold each role once/],
    [{ roles: ["run", "read"] }, /roles must be sorted, and hold each role once/],
    [{ roles: ["read", "write"] }, /roles\[1\] must be "read" or "run"/],
    [{ roles: "read" }, /roles must be a list/],
    [{ roles: ["read"] }, /sealed has 4252 bytes, which no key of its roles has/],
    [{ roles: ["run"] }, /sealed has 4252 bytes, which no key of its roles has/],
    [{ extra: 1 }, /header\.extra is unknown/],
    [{ key_id: "0".repeat(16) }, /key_id does not belong to the key inside/],
    [{ not_after: "2024-02-30T00:00:00Z" }, /not_after is not a date/],
    [{ issued_at: "2024-13-01T00:00:00Z" }, /issued_at is not a date/],
    [{ not_before: "0000-01-01T00:00:00Z" }, /not_before is not a date/],
    [{ scope: [] }, /scope must be a list of 1 … 64/],
    [{ subject: "\u{1f41e}".repeat(257) }, /subject must be 1 … 256 characters/],
  ] as const) {
    const file = await acme.bundle(alice, header);
    await refused(Decoder.open(codebook, file, PASSPHRASE), "FormatError", message);
  }
  const wild = "\u{1f41e}".repeat(250) + '"\\/\b\x7f';
  const file = await acme.bundle(alice, { subject: wild });
  assert.equal((await KeyBundle.parse(file)).header.subject, wild);
});

test("a bundle to the user's public key opens with the private key", async () => {
  const publicKey = own.publicKey.raw;
  const file = await acme.bundle(alice, {}, { publicKey });
  const parsed = await KeyBundle.parse(file);
  assert.deepEqual(parsed.recipient?.raw, publicKey);
  assert.equal((await KeyBundle.parse(bundle)).recipient, undefined);
  const seen: number[] = [];
  for (const given of [file, new TextEncoder().encode(file), parsed]) {
    const onProgress = (done: number): number => seen.push(done);
    const decoder = await Decoder.open(codebook, given, own, { onProgress });
    assert.deepEqual([...decoder.secretTable()], CLASSES);
  }
  assert.deepEqual([seen[0], seen.at(-1)], [0, 1]);
  const stop = AbortSignal.abort();
  const aborted = Decoder.open(codebook, file, own, { signal: stop });
  await assert.rejects(aborted, { name: "AbortError" });
  const revoked = await acme.bundle(bob, {}, { publicKey });
  await refused(Decoder.open(codebook, revoked, own), "RevokedKeyError", /was revoked before/);
});

test("the other kind of secret is refused, and so is another private key", async () => {
  const publicKey = own.publicKey.raw;
  const file = await acme.bundle(alice, {}, { publicKey });
  const { fingerprint } = own.publicKey;
  for (const secret of [PASSPHRASE, "", undefined, null, {}, { publicKey: own.publicKey }]) {
    const opened = Decoder.open(codebook, file, secret as any);
    const message = new RegExp(
      `^The private key of '${fingerprint}' opens key bundle [0-9a-f]{16} \\(subject 'alice'\\): ` +
        "`secret` must be it, an `X25519PrivateKey`\\.$",
    );
    await refused(opened, "ArgumentError", message);
  }
  for (const secret of [own, undefined, null, 5, { toString: () => PASSPHRASE }]) {
    const opened = Decoder.open(codebook, bundle, secret as any);
    const message =
      /^A passphrase opens key bundle [0-9a-f]{16} \(subject 'alice'\): `secret` must/;
    await refused(opened, "ArgumentError", message);
  }
  const other = await newPrivateKey();
  const message = new RegExp(
    `was made to the public key '${fingerprint}', and not to yours, '${other.publicKey.fingerprint}'`,
  );
  await refused(Decoder.open(codebook, file, other), "KeyRefusedError", message);
});

test("dates, scope and authority hold for bundles to a public key, too", async () => {
  const sealed = { publicKey: own.publicKey.raw };
  const past = await acme.bundle(alice, { not_after: "2025-01-01T00:00:00Z" }, sealed);
  await refused(Decoder.open(codebook, past, ""), "ExpiredKeyError", /expired on 2025-01-01T00/);
  const others = await acme.bundle(alice, { scope: ["birds"] }, sealed);
  await refused(Decoder.open(codebook, others, own), "WrongModelError", /birds, not for 'pets'/);
  const acmes = new Authority();
  const foreign = await acmes.bundle(acmes.issue(), {}, sealed);
  await refused(Decoder.open(codebook, foreign, ""), "ForeignKeyError", /another authority/);
});

test("well signed, yet refused: bundles to a public key", async () => {
  const publicKey = own.publicKey.raw;
  const mislabelled = await acme.bundle(alice, { opens_with: "passphrase" }, { publicKey });
  const message = /bundle\.body\.(encapsulated|recipient) is unknown/;
  await refused(Decoder.open(codebook, mislabelled, own), "FormatError", message);
  const another = await acme.bundle(alice, {}, { publicKey, info: "encryip key bundle v2" });
  const changed = /^The header or body of key bundle [0-9a-f]{16} \(subject 'alice'\) was changed/;
  await refused(Decoder.open(codebook, another, own), "SignatureError", changed);
  const misnamed = await acme.bundle(alice, { key_id: "0".repeat(16) }, { publicKey });
  await refused(Decoder.open(codebook, misnamed, own), "FormatError", /key_id does not belong/);
  const secret = concat(alice.subarray(0, 32), fromHex(ORDER), alice.subarray(64));
  const outside = await acme.bundle(alice, {}, { publicKey, secret });
  await refused(Decoder.open(codebook, outside, own), "FormatError", /value is not a scalar/);
  const file = await acme.bundle(alice, {}, { publicKey });
  const { bundle: signed } = JSON.parse(file.split("\n")[1]!);
  const resign = (domain: string): string => {
    const signature = acme.sign(domain, JSON.stringify(signed));
    return file.replace(/\{.*\}/, JSON.stringify({ bundle: signed, signature }));
  };
  const wrong = Decoder.open(codebook, resign("key bundle v2"), own);
  await refused(wrong, "SignatureError", /The signature of the key bundle is wrong/);
  // Signed again by the authority after the key was sealed: HPKE finds the changed header.
  signed.header.subject = "mallory";
  const opened = Decoder.open(codebook, resign("key bundle v3"), own);
  await refused(opened, "SignatureError", /\(subject 'mallory'\) was changed/);
});

test("well signed, yet refused: scalars in the sealed key", async () => {
  for (const at of [32, 64]) {
    for (const scalar of ["0".repeat(64), ORDER, "f".repeat(64)]) {
      const secret = concat(alice.subarray(0, at), fromHex(scalar), alice.subarray(at + 32));
      const file = await acme.bundle(alice, {}, { secret });
      const opened = Decoder.open(codebook, file, PASSPHRASE);
      await refused(opened, "FormatError", /User key value is not a scalar/);
    }
  }
});

test("well signed, yet refused: lengths of the sealed key", async () => {
  const slots = (count: number): Bytes => new Authority(1, count).issue();
  for (const secret of [
    alice.subarray(0, 64),
    alice.subarray(0, 96),
    alice.subarray(0, -1),
    concat(alice, new Uint8Array(16)),
    slots(248),
    slots(4104),
  ]) {
    const message = new RegExp(`sealed has ${secret.length + 28} bytes, which no key of its roles`);
    const file = await acme.bundle(alice, {}, { secret });
    await refused(KeyBundle.parse(file), "FormatError", message);
  }
  for (const secret of [slots(264), slots(4096)]) {
    const found = await KeyBundle.parse(await acme.bundle(secret));
    const { reader } = await found.unlock(PASSPHRASE);
    assert.equal(reader.numSlots, (8 * (secret.length - 96)) / 129);
  }
});

test("roles: reading takes the role `read`, and no other", async () => {
  const [reads, runs] = ["read", "run"].map((role) => [acme.issue(undefined, [role]), [role]]);
  for (const publicKey of [undefined, own.publicKey.raw]) {
    const open = async ([key, roles]: any): Promise<Decoder> =>
      Decoder.open(
        codebook,
        await acme.bundle(key, { roles }, { publicKey }),
        publicKey === undefined ? PASSPHRASE : own,
      );
    assert.deepEqual([...(await open(reads)).secretTable()], CLASSES);
    const message =
      /^Key [0-9a-f]{16} runs models, and does not read their answers: ask the model's/;
    await refused(open(runs), "KeyRefusedError", message);
  }
});

test("well signed, yet refused: fields of the codebook", async () => {
  for (const [body, message] of [
    [{ version: 1 }, /This codebook has version 1, which release 0\.3 of keras_encryip reads/],
    [{ version: 3 }, /version must be 2/],
    [{ blocks: [] }, /body\.blocks is unknown/],
    [{ num_classes: 1 }, /num_classes must be an integer/],
    [{ slots: "" }, /must have 2 … 4194304 labels, 2 bytes each/],
    [{ slots: "AAA=" }, /must have 2 … 4194304 labels, 2 bytes each/],
    [{ slots: "AAAA" }, /must have 2 … 4194304 labels, 2 bytes each/],
    [{ slots: "AAAAAAAA" }, /values has 96 bytes, expected 24/],
    [{ values: "" }, /values has 0 bytes, expected 96/],
    [{ values: "/".repeat(128) }, /is not below num_classes/],
    [{ header: "" }, /header has a wrong length or threshold/],
  ] as const) {
    const file = await acme.codebook(CLASSES, METADATA, { body });
    await refused(Decoder.open(file, bundle, PASSPHRASE), "FormatError", message);
  }
});

test("well signed, yet refused: metadata", async () => {
  for (const [metadata, message] of [
    [{ ...METADATA, class_names: ["a", "b"] }, /names another number of classes/],
    [{ ...METADATA, more: 1 }, /metadata\.more is unknown/],
    [{ model: "pets", notes: "" }, /class_names must be present/],
    [{ ...METADATA, model: "m".repeat(257) }, /model must be 0 … 256 characters/],
  ] as const) {
    const file = await acme.codebook(CLASSES, metadata);
    await refused(Decoder.open(file, bundle, PASSPHRASE), "FormatError", message);
  }
});

test("sizes are bounded before anything is parsed", async () => {
  const large = " ".repeat(196_609);
  await refused(KeyBundle.parse(large), "FormatError", /too large: 196609 bytes, at most 196608/);
  const huge = new Uint8Array(2 ** 28 + 1);
  const opened = Decoder.open(huge, bundle, PASSPHRASE);
  await refused(opened, "FormatError", /codebook is too large: 268435457 bytes, at most 268435456/);
});

test("a browser without the memory that scrypt takes is told so", async (context) => {
  const parsed = await KeyBundle.parse(bundle);
  const small = new Proxy(Uint8Array, {
    construct(target, [length, ...others]) {
      if (length >= 2 ** 24) throw new RangeError("Array buffer allocation failed");
      return new target(length as number, ...(others as []));
    },
  });
  replaceGlobal(context, "Uint8Array", small);
  const opened = parsed.unlock(PASSPHRASE);
  await refused(opened, "FormatError", /scrypt_log2_n is 14: .* does not give the 16 MiB/);
});

test("a page without WebCrypto is told what to do", async (context) => {
  replaceGlobal(context, "crypto", {});
  const message = /serve the page over HTTPS, or from localhost/;
  await refused(KeyBundle.parse(bundle), "ArgumentError", message);
});

test("progress goes from 0 to 1, and a signal aborts", async () => {
  const seen: number[] = [];
  await Decoder.open(codebook, bundle, PASSPHRASE, { onProgress: (done) => seen.push(done) });
  assert.equal(seen[0], 0);
  assert.equal(seen.at(-1), 1);
  assert.deepEqual(
    seen,
    [...seen].sort((a, b) => a - b),
  );
  assert.ok(seen.length > 100);
  for (const when of [0, 0.4, 0.8]) {
    const stop = new AbortController();
    const onProgress = (done: number): void => {
      if (done >= when) stop.abort();
    };
    const opened = Decoder.open(codebook, bundle, PASSPHRASE, { signal: stop.signal, onProgress });
    await assert.rejects(opened, { name: "AbortError" });
  }
});

test("other work runs while a model opens", async () => {
  const costly = await acme.bundle(alice, {}, { log2N: 16 });
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await Decoder.open(codebook, costly, PASSPHRASE);
  clearInterval(timer);
  assert.ok(turns >= 5, `${turns} turns`);
});

test("other work runs while a large table is decoded", async () => {
  const classes = Array.from({ length: 100_064 }, (_, j) => j % 3);
  const large = await acme.codebook(classes, METADATA);
  const seen: number[] = [];
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const onProgress = (done: number): number => seen.push(done);
  const decoder = await Decoder.open(large, bundle, PASSPHRASE, { onProgress });
  clearInterval(timer);
  assert.deepEqual([...decoder.secretTable()], classes);
  assert.ok(turns >= 5, `${turns} turns`);
  assert.ok(seen.filter((done) => done > 0.5).length > 50);
});

test("printing, serialising and cloning show public facts only", async () => {
  const decoder = await Decoder.open(codebook, bundle, PASSPHRASE);
  const parsed = await KeyBundle.parse(bundle);
  const key = await parsed.unlock(PASSPHRASE);
  const secret = await Codebook.parse(codebook).secret(key.reader);
  const secrets = [
    ...[0, 32, 64, 96, 128].flatMap((start) => {
      const part = alice.subarray(start, start + 32);
      const text = Buffer.from(part).toString("hex");
      return [text, BigInt(`0x${text}`).toString(), encodeBase64(part), part.join(", ")];
    }),
    CLASSES.join(","),
    CLASSES.join(", "),
    PASSPHRASE,
  ];
  for (const object of [decoder, parsed, key, key.reader, key.reader.point, secret]) {
    const shown = [
      inspect(object, { showHidden: true, depth: 9 }),
      String(object),
      JSON.stringify(object),
      inspect(structuredClone({ ...object }), { depth: 9 }),
      Object.getOwnPropertyNames(object).join(),
    ].join("\n");
    for (const text of secrets) assert.ok(!shown.includes(text));
  }
  assert.match(inspect(key), new RegExp(parsed.header.key_id));
});
