/** A user's own key pair: files of OpenSSL's, costly files, files of other kinds, and damage. */

import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import { inspect } from "node:util";

import { ascii, decodeBase64, encodeBase64, hex } from "../src/encoding.js";
import { EncryipError } from "../src/errors.js";
import { X25519PrivateKey, X25519PublicKey } from "../src/keypair.js";
import { unwrap } from "../src/pkcs8.js";
import { fromHex, pem, read, sealTo } from "./files.js";

const VECTORS = read("public_key_bundle.json");
const PASSPHRASE = "a passphrase of my own";
const PREFIX = "302e020100300506032b656e04220420";
const SECRET = VECTORS.private_key;
const PLAIN = pem("PRIVATE KEY", fromHex(PREFIX + SECRET));
const P = 2n ** 255n - 19n;

/** A new key as OpenSSL writes it. */
function openssl(cipher?: string, kind: "x25519" | "ed25519" = "x25519"): [string, string] {
  const encryption = cipher === undefined ? {} : { cipher, passphrase: PASSPHRASE };
  const { privateKey, publicKey } = generateKeyPairSync(kind as "x25519", {
    privateKeyEncoding: { type: "pkcs8", format: "pem", ...encryption },
    publicKeyEncoding: { type: "spki", format: "der" },
  });
  return [privateKey, hex(publicKey.subarray(-32))];
}

/** DER of one element. */
function tlv(tag: number, ...parts: string[]): string {
  const length = parts.join("").length / 2;
  const long = length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  const size = length < 128 ? [length] : long;
  return hex(new Uint8Array([tag, ...size])) + parts.join("");
}
const number = (value: number): string => {
  const digits = value.toString(16);
  return tlv(2, "00" + (digits.length % 2 ? "0" : "") + digits);
};
const CBC = "60864801650304012a";
const SCRYPT = "2b06010401da47040b";
const PBKDF2 = "2a864886f70d01050c";
const SHA256 = tlv(0x30, tlv(6, "2a864886f70d0209"), "0500");

/** An encrypted key of any algorithms; what it holds is no key. */
function encrypted(kdf: string, parameters: string[], cipher = CBC): string {
  const key = tlv(0x30, tlv(6, kdf), tlv(0x30, tlv(4, "00".repeat(8)), ...parameters));
  const scheme = tlv(0x30, key, tlv(0x30, tlv(6, cipher), tlv(4, "00".repeat(16))));
  const algorithm = tlv(0x30, tlv(6, "2a864886f70d01050d"), scheme);
  const der = tlv(0x30, algorithm, tlv(4, "00".repeat(48)));
  return pem("ENCRYPTED PRIVATE KEY", fromHex(der));
}

const refused = async (parsed: Promise<unknown>, name: string, message: RegExp): Promise<void> => {
  await assert.rejects(parsed, (error: Error) => {
    assert.equal(error.name, name);
    assert.match(error.message, message);
    assert.equal(error.cause, undefined);
    assert.ok(!inspect(error).includes(PASSPHRASE));
    return true;
  });
};

for (const cipher of [undefined, "aes-256-cbc", "aes-128-cbc"]) {
  test(`what OpenSSL writes is read: ${cipher ?? "plain"}`, async () => {
    const [file, publicKey] = openssl(cipher);
    const passphrase = cipher === undefined ? undefined : PASSPHRASE;
    for (const spelled of [
      file,
      ascii(file),
      `\n ${file.replaceAll("\n", "\r\n")}\t`,
      file.trim(),
      `\ufeff${file}`,
      ascii(`\ufeff${file}`),
      ascii(`\ufeff${file.replaceAll("\n", "\r\n")}`),
    ]) {
      const own = await X25519PrivateKey.parse(spelled, passphrase);
      assert.equal(hex(own.publicKey.raw), publicKey);
    }
    if (cipher === undefined) return;
    const parsed = X25519PrivateKey.parse(file, `${PASSPHRASE} `);
    await refused(parsed, "PassphraseError", /^The passphrase does not open the private key, or/);
  });
}

test("other encryption is refused, and the message says how to convert it", async () => {
  const convert =
    /which this client does not read\. Convert it: openssl pkcs8 -topk8 -v2 aes-256-c/;
  for (const cipher of ["aes-192-cbc", "des-ede3-cbc"]) {
    const [file] = openssl(cipher);
    await refused(X25519PrivateKey.parse(file, PASSPHRASE), "FormatError", convert);
    const message = /with another cipher than AES-128-CBC or AES-256-CBC/;
    await refused(X25519PrivateKey.parse(file, PASSPHRASE), "FormatError", message);
  }
  const sha512 = tlv(0x30, tlv(6, "2a864886f70d020b"), "0500");
  const pbes1 = tlv(0x30, tlv(6, "2a864886f70d010c0103"), tlv(0x30, tlv(4, "00"), number(2048)));
  for (const [file, message] of [
    [encrypted(PBKDF2, [number(2048)]), /PBKDF2 of another hash than HMAC-SHA256/], // SHA-1
    [encrypted(PBKDF2, [number(2048), sha512]), /PBKDF2 of another hash than HMAC-SHA256/],
    [encrypted("2a864886f70d01050e", [number(2048)]), /with a key of neither scrypt nor PBKDF2/],
    [pem("ENCRYPTED PRIVATE KEY", fromHex(tlv(0x30, pbes1, tlv(4, "00")))), /than PBES2/],
  ] as const) {
    await refused(X25519PrivateKey.parse(file, PASSPHRASE), "FormatError", convert);
    await refused(X25519PrivateKey.parse(file, PASSPHRASE), "FormatError", message);
  }
});

test("costs are bounded before anything is computed", async () => {
  const start = performance.now();
  for (const [file, message] of [
    [
      encrypted(SCRYPT, [2 ** 21, 8, 1].map(number)),
      /scrypt of the cost N = 2097152, r = 8, p = 1/,
    ],
    [encrypted(SCRYPT, [2 ** 14, 8, 65].map(number)), /N = 16384, r = 8, p = 65/],
    [encrypted(SCRYPT, [2, 1, 1025].map(number)), /N = 2, r = 1, p = 1025/],
    [encrypted(SCRYPT, [2, 2 ** 30, 1].map(number)), /r = 1073741824/],
    [encrypted(SCRYPT, [tlv(2, `7f${"ff".repeat(299)}`), number(8), number(1)]), /N = Infinity/],
    [encrypted(PBKDF2, [number(10_000_001), SHA256]), /PBKDF2 of 10000001 iterations, which/],
    [encrypted(PBKDF2, [tlv(2, `7f${"ff".repeat(50)}`), SHA256]), /PBKDF2 of 3\.\d+e\+122 iter/],
  ] as const) {
    await refused(X25519PrivateKey.parse(file, PASSPHRASE), "FormatError", message);
  }
  assert.ok(performance.now() - start < 2000);
});

test("parameters that mean nothing are not tried", async () => {
  const message = /^The passphrase does not open the private key, or it was changed\.$/;
  const tries = async (file: string): Promise<boolean> => {
    let tried = false;
    const parsed = X25519PrivateKey.parse(file, PASSPHRASE, { onProgress: () => (tried = true) });
    await refused(parsed, "PassphraseError", message);
    return tried;
  };
  for (const file of [
    encrypted(SCRYPT, [2 ** 10, 8, 1].map(number)),
    encrypted(SCRYPT, [2 ** 10, 8, 1, 32].map(number)),
    encrypted(SCRYPT, [2 ** 15, 1, 1].map(number)),
    encrypted(PBKDF2, [number(2048), SHA256]),
    encrypted(PBKDF2, [number(2048), number(32), SHA256]),
  ]) {
    assert.ok(await tries(file));
  }
  for (const file of [
    encrypted(SCRYPT, [0, 8, 1].map(number)),
    encrypted(SCRYPT, [1, 8, 1].map(number)),
    encrypted(SCRYPT, [1023, 8, 1].map(number)),
    encrypted(SCRYPT, [2 ** 14, 0, 1].map(number)),
    encrypted(SCRYPT, [2 ** 14, 8, 0].map(number)),
    encrypted(SCRYPT, [2 ** 16, 1, 1].map(number)), // RFC 7914: N below 2^(128·r/8)
    encrypted(SCRYPT, [2 ** 14, 8].map(number)),
    encrypted(SCRYPT, [2 ** 10, 8, 1, 16].map(number)), // a key of 16 bytes for AES-256
    encrypted(SCRYPT, [2 ** 10, 8, 1, 32, 0].map(number)),
    encrypted(SCRYPT, [number(2 ** 10), number(8), SHA256]),
    encrypted(PBKDF2, [number(0), SHA256]),
    encrypted(PBKDF2, [number(2048), number(16), SHA256]),
    encrypted(PBKDF2, [number(2048), SHA256, SHA256]),
    encrypted(PBKDF2, [SHA256]),
  ]) {
    assert.ok(!(await tries(file)));
  }
});

test("a passphrase is passed exactly if it is needed", async () => {
  const [file] = openssl("aes-256-cbc");
  await refused(X25519PrivateKey.parse(file), "PassphraseError", /is encrypted: pass its passphr/);
  const given = X25519PrivateKey.parse(PLAIN, PASSPHRASE);
  await refused(given, "PassphraseError", /is not encrypted: pass no passphrase/);
  for (const wrong of ["", "half \ud800", 5 as unknown as string]) {
    const message = /`passphrase` (must be a string that is not empty|is not Unicode text)/;
    await refused(X25519PrivateKey.parse(file, wrong), "ArgumentError", message);
  }
});

test("files of other kinds and sizes are refused", async () => {
  const [ed25519] = openssl(undefined, "ed25519");
  const [hidden] = openssl("aes-256-cbc", "ed25519");
  const message = /^The private key is not for X25519\.$/;
  await refused(X25519PrivateKey.parse(ed25519), "FormatError", message);
  await refused(X25519PrivateKey.parse(hidden, PASSPHRASE), "FormatError", message);
  const large = X25519PrivateKey.parse(" ".repeat(8_193) + PLAIN);
  await refused(large, "FormatError", /private key is too large: \d+ bytes, at most 8192/);
  const block =
    /^The private key is not one whole PEM block 'ENCRYPTED PRIVATE KEY' or 'PRIVATE KE/;
  for (const wrong of ["", PLAIN + PLAIN, VECTORS.public_key_pem, ` \ufeff${PLAIN}`, `${PLAIN}é`]) {
    await refused(X25519PrivateKey.parse(wrong), "FormatError", block);
  }
  for (const wrong of ["", "020101", "3000", PREFIX]) {
    const file = pem("PRIVATE KEY", fromHex(wrong));
    await refused(X25519PrivateKey.parse(file), "FormatError", /not in the form PKCS #8/);
  }
});

test("a changed file is refused or another key: never an engine's error", async () => {
  const publicKey = (await X25519PrivateKey.parse(PLAIN)).publicKey.raw;
  const [file] = openssl("aes-256-cbc");
  const lines = (text: string): string => text.split("\n").slice(1, -2).join("");
  for (const [label, text, passphrase] of [
    ["PRIVATE KEY", PLAIN, undefined],
    ["ENCRYPTED PRIVATE KEY", file, PASSPHRASE],
  ] as const) {
    const der = decodeBase64(lines(text), "der");
    let other = 0;
    for (let at = 0; at < der.length; at++) {
      const flipped = [1, 0x80].map((bit) => der.with(at, der[at]! ^ bit));
      for (const changed of [...flipped, der.slice(0, at)]) {
        try {
          const own = await X25519PrivateKey.parse(pem(label, changed), passphrase);
          other++;
          if (label === "PRIVATE KEY") assert.equal(changed.length, der.length);
          // Bits that RFC 7748 sets or clears in the secret number change nothing.
          if (at > 16 && at < der.length - 1) assert.notDeepEqual(own.publicKey.raw, publicKey);
        } catch (error) {
          assert.ok(error instanceof EncryipError, `${at}: ${error}`);
        }
      }
    }
    assert.ok(other > 10 && other < 100, `${other}`);
  }
});

test("points of small order, second spellings and other lengths are refused", () => {
  const bytes = (u: bigint, length = 32): Uint8Array<ArrayBuffer> =>
    fromHex(u.toString(16).padStart(64, "0")).reverse().slice(0, length);
  const order8 = [
    325606250916557431795983626356110631294008115727848805560023387167927233504n,
    39382357235489614581723060781553021112529911719440698176882885853963445705823n,
  ];
  const low = [0n, 1n, P - 1n, ...order8];
  const high = 2n ** 255n;
  const spelled = [P, P + 1n, P + 9n, 2n ** 256n - 1n, 9n + high, ...low.map((u) => u + high)];
  const points = [...low, ...spelled].map((u) => bytes(u));
  for (const raw of [...points, bytes(9n, 31), fromHex("09".repeat(33)), bytes(9n, 0)]) {
    const message = /^These bytes are not an X25519 public key that can be used\.$/;
    assert.throws(() => new X25519PublicKey(raw), { name: "FormatError", message });
  }
  for (const u of [2n, 9n, P - 2n]) assert.deepEqual(new X25519PublicKey(bytes(u)).raw, bytes(u));
});

test("only the private key unseals, and every input counts", async () => {
  const own = await X25519PrivateKey.parse(PLAIN);
  const [other] = openssl();
  const stranger = await X25519PrivateKey.parse(other);
  const [info, header, text] = ["info", "header", "sixty-four bytes"].map(ascii);
  const [encapsulated, sealed] = await sealTo(own.publicKey.raw, text!, info!, header!);
  const [wrong] = await sealTo(own.publicKey.raw, text!, info!, header!);
  const point = new X25519PublicKey(encapsulated);
  assert.deepEqual(await own.unseal(point, sealed, info!, header!), text);
  for (const open of [
    () => stranger.unseal(point, sealed, info!, header!),
    () => own.unseal(new X25519PublicKey(wrong), sealed, info!, header!),
    () => own.unseal(point, sealed.with(0, sealed[0]! ^ 1), info!, header!),
    () => own.unseal(point, sealed.slice(0, -1), info!, header!),
    () => own.unseal(point, sealed.slice(0, 3), info!, header!),
    () => own.unseal(point, sealed, ascii("other"), header!),
    () => own.unseal(point, sealed, info!, ascii("other")),
  ]) {
    await refused(open(), "SignatureError", /^The sealed data cannot be opened with this key, or/);
  }
});

test("scrypt and PBKDF2 report progress, and can be aborted", async () => {
  const slow = encrypted(PBKDF2, [number(10_000_000), SHA256]);
  for (const [file, passphrase] of [
    [VECTORS.private_key_pem, VECTORS.passphrase],
    [openssl("aes-256-cbc")[0], PASSPHRASE],
  ]) {
    const seen: number[] = [];
    await X25519PrivateKey.parse(file, passphrase, { onProgress: (done) => seen.push(done) });
    assert.deepEqual([seen[0]! < 0.01, seen.at(-1)], [true, 1]);
  }
  for (const [file, passphrase] of [
    [VECTORS.private_key_pem, VECTORS.passphrase],
    [slow, PASSPHRASE],
  ]) {
    const stop = new AbortController();
    const onProgress = (): void => void setTimeout(() => stop.abort(), 0);
    const parsed = X25519PrivateKey.parse(file, passphrase, { signal: stop.signal, onProgress });
    await assert.rejects(parsed, { name: "AbortError" });
    const late = X25519PrivateKey.parse(file, passphrase, { signal: stop.signal });
    await assert.rejects(late, { name: "AbortError" });
  }
});

test("other work runs while a private key opens", async () => {
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await unwrap(VECTORS.private_key_pem, VECTORS.passphrase, {});
  clearInterval(timer);
  assert.ok(turns >= 5, `${turns} turns`);
});

test("printing, serialising and cloning a private key show its public key only", async () => {
  const own = await X25519PrivateKey.parse(PLAIN);
  const shown = [
    inspect(own, { showHidden: true, depth: 9 }),
    String(own),
    JSON.stringify(own),
    inspect(structuredClone({ ...own }), { depth: 9 }),
    Object.getOwnPropertyNames(own).join(),
  ].join("\n");
  const secret = fromHex(SECRET);
  const forms = [SECRET, encodeBase64(secret), [...secret].join(), [...secret].join(", ")];
  forms.push([...secret.subarray(0, 4)].map((byte, i) => `"${i}":${byte}`).join());
  for (const form of forms) assert.ok(!shown.includes(form));
  assert.match(shown, new RegExp(`${own.publicKey.raw[0]}`));
  assert.equal(own.publicKey.fingerprint, VECTORS.fingerprint);
});
