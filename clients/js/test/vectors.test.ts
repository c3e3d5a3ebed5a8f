/** The vectors that Python's tests read: every value on the way, and what is refused. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { x25519 } from "@noble/curves/ed25519.js";

import { KeyBundle } from "../src/bundle.js";
import { parseCiphertext } from "../src/ciphertext.js";
import { Codebook } from "../src/codebook.js";
import { Decoder } from "../src/decoder.js";
import { ascii, canonicalJson, decodeBase64, hex } from "../src/encoding.js";
import { ForeignKeyError, KeyRefusedError, RevokedKeyError } from "../src/errors.js";
import { keySchedule, sharedSecret } from "../src/hpke.js";
import { Header } from "../src/kem.js";
import { BundleKeys, isKeyLength, labelBlocks, ReaderKey } from "../src/keys.js";
import { X25519PrivateKey, X25519PublicKey } from "../src/keypair.js";
import { unwrap } from "../src/pkcs8.js";
import { taggedDigest } from "../src/primitives.js";
import { openResponse, parseResponse } from "../src/responses.js";
import { derived, fromHex, read, userKeyOf } from "./files.js";

const VECTORS = read("codebook.json");
const TO_PUBLIC_KEY = read("public_key_bundle.json");
const HOSTED = read("hosted.json");

for (const [name, vector] of Object.entries<any>(read("kem.json"))) {
  test(`kem ${name}: headers and keys`, async () => {
    assert.equal(
      hex(await taggedDigest("public key v1", fromHex(vector.public_key))),
      vector.authority,
    );
    for (const [i, user] of vector.users.entries()) {
      assert.equal((await userKeyOf(user.user_key)).keyId, user.key_id);
      const revoked = vector.revoked_users.includes(i);
      const header = Header.parse(fromHex(vector.header.bytes));
      assert.equal(header.threshold, vector.threshold);
      assert.equal(hex(await header.digest()), vector.header.digest);
      for (const purpose of Object.keys(vector.keys)) {
        const opened = derived(user.user_key, vector.header.bytes, purpose);
        if (revoked) await assert.rejects(opened, RevokedKeyError);
        else assert.equal(await opened, vector.keys[purpose]);
      }
    }
  });
}

test("key bundle: associated data, keys, NFC passphrase", async () => {
  const bundle = await KeyBundle.parse(VECTORS.key_bundle);
  assert.equal(canonicalJson(bundle.header), VECTORS.bundle_associated_data);
  bundle.checkDates(new Date("2024-01-01T00:00:00Z"));
  bundle.checkDates(new Date("9999-12-31T00:00:00Z"));
  assert.ok(bundle.allows("pets"));
  assert.ok(!bundle.allows("digits"));
  const { header } = Codebook.parse(VECTORS.codebook);
  const expected = await derived(VECTORS.user_key, hex(header.bytes), "model metadata v2");
  assert.equal(expected, VECTORS.metadata_key);
  for (const passphrase of [VECTORS.passphrase, "correct h\u00f6rse"]) {
    const { keyId, reader } = await bundle.unlock(passphrase);
    assert.equal(keyId, bundle.header.key_id);
    const secret = await reader.point.decapsulate(header);
    assert.equal(hex(await secret.derive("model metadata v2")), VECTORS.metadata_key);
  }
  const keys = VECTORS.user_key + VECTORS.run_key.slice(64) + VECTORS.codeword + VECTORS.slot_keys;
  assert.equal(VECTORS.bundle_keys, keys);
  assert.ok(isKeyLength(keys.length / 2, bundle.header.roles));
  assert.equal(
    (await BundleKeys.fromSecretBytes(fromHex(keys), ["read", "run"])).reader.numSlots,
    256,
  );
});

test("key bundle to a public key: key pair, HPKE's key and nonce, user key", async () => {
  const { passphrase, private_key_pem, private_key, public_key_pem } = TO_PUBLIC_KEY;
  const bundle = await KeyBundle.parse(TO_PUBLIC_KEY.key_bundle);
  assert.equal(canonicalJson(bundle.header), TO_PUBLIC_KEY.bundle_associated_data);
  const { key } = await unwrap(private_key_pem, passphrase, {});
  assert.equal(hex(key), `0420${private_key}`);
  const own = await X25519PrivateKey.parse(private_key_pem, "correct h\u00f6rse");
  assert.equal(own.publicKey.fingerprint, TO_PUBLIC_KEY.fingerprint);
  assert.deepEqual(bundle.recipient, own.publicKey);
  const [, der] = public_key_pem.split("\n");
  assert.equal(hex(decodeBase64(der, "der").subarray(-32)), hex(own.publicKey.raw));
  const { body } = JSON.parse(TO_PUBLIC_KEY.key_bundle.split("\n")[1]).bundle;
  const encapsulated = decodeBase64(body.encapsulated, "encapsulated");
  const dh = new Uint8Array(x25519.getSharedSecret(fromHex(private_key), encapsulated));
  const secret = await sharedSecret(dh, encapsulated, own.publicKey.raw);
  const found = await keySchedule(secret, ascii("encryip key bundle v3"));
  assert.equal(hex(found.key), TO_PUBLIC_KEY.hpke_key);
  assert.equal(hex(found.nonce), TO_PUBLIC_KEY.hpke_nonce);
  const sealed = decodeBase64(body.sealed, "sealed");
  const header = ascii(TO_PUBLIC_KEY.bundle_associated_data);
  const point = new X25519PublicKey(encapsulated);
  const opened = await own.unseal(point, sealed, ascii("encryip key bundle v3"), header);
  assert.equal(hex(opened), TO_PUBLIC_KEY.bundle_keys);
  const keys = await bundle.unlock(own);
  assert.equal(keys.keyId, bundle.header.key_id);
  assert.throws(() => keys.reader, KeyRefusedError);
});

// RFC 9180, A.1: its KEM is ours. Its AEAD is AES-128-GCM, which the key schedule depends on.
test("DHKEM(X25519, HKDF-SHA256): the vector of RFC 9180", async () => {
  const own = fromHex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
  const enc = fromHex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
  const dh = new Uint8Array(x25519.getSharedSecret(own, enc));
  const secret = await sharedSecret(dh, enc, new Uint8Array(x25519.getPublicKey(own)));
  const expected = "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc";
  assert.equal(hex(secret), expected);
});

test("codebook: metadata, label keys, masks, table, ciphertexts", async () => {
  const bundle = await KeyBundle.parse(VECTORS.key_bundle);
  const codebook = Codebook.parse(new TextEncoder().encode(VECTORS.codebook));
  await codebook.verify(bundle.issuer);
  const { reader } = await BundleKeys.fromSecretBytes(fromHex(VECTORS.bundle_keys), [
    "read",
    "run",
  ]);
  const secret = await codebook.secret(reader);
  assert.equal(canonicalJson(await codebook.openMetadata(reader, secret)), VECTORS.metadata);
  assert.equal(hex(await secret.derive("label keys v2")), VECTORS.labels_key);
  const blocks = await labelBlocks(fromHex(VECTORS.labels_key), 0, codebook.numLabels);
  for (const [j, masked] of codebook.maskedSlots.entries()) {
    const [key, other] = [blocks.subarray(32 * j), blocks.subarray(32 * j + 16)];
    assert.equal(hex(key.subarray(0, 16)), VECTORS.label_keys[j]);
    assert.equal((other[0]! << 8) | other[1]!, VECTORS.slot_masks[j]);
    assert.equal(masked ^ VECTORS.slot_masks[j], VECTORS.slots[j]);
  }
  const one = await labelBlocks(fromHex(VECTORS.labels_key), 17, 1);
  assert.deepEqual(one, blocks.slice(32 * 17, 32 * 18));
  const zeros = new Array(2 * codebook.numLabels).fill(0);
  const minus = reader.readLabels(blocks, codebook.maskedSlots, zeros, 3);
  assert.deepEqual(
    Array.from(minus, (value) => (3 - value) % 3),
    VECTORS.masks,
  );
  assert.deepEqual([...(await codebook.decodeTable(reader, secret))], VECTORS.table);
  for (const [i, label] of [0, 1, 8, 17, 31].entries()) {
    assert.equal(hex(codebook.ciphertext(label)), VECTORS.ciphertexts[i]);
    const fields = parseCiphertext(fromHex(VECTORS.ciphertexts[i]));
    assert.deepEqual(fields.codebookId, codebook.codebookId);
    assert.deepEqual([fields.maskedSlot, fields.label], [codebook.maskedSlots[label], label]);
    assert.deepEqual(fields.values, [...codebook.values.subarray(2 * label, 2 * label + 2)]);
  }
  const ciphertexts = VECTORS.ciphertexts.map(fromHex);
  assert.deepEqual(await bundle.decrypt(ciphertexts, VECTORS.passphrase), VECTORS.classes);
});

test("codebook: another reader's table differs where the bits do", async () => {
  const { codebook, reader_bundle, passphrase } = VECTORS;
  const decoder = await Decoder.open(codebook, reader_bundle, passphrase);
  assert.deepEqual([...decoder.secretTable()], VECTORS.reader_table);
  assert.notDeepEqual(VECTORS.reader_table, VECTORS.table);
  assert.deepEqual((await KeyBundle.parse(reader_bundle)).header.roles, ["read"]);
});

test("codebook: revoked and foreign keys", async () => {
  const codebook = Codebook.parse(VECTORS.codebook);
  const slots = fromHex(VECTORS.codeword + VECTORS.slot_keys);
  const revoked = new ReaderKey(await userKeyOf(VECTORS.revoked_user_key), slots);
  await assert.rejects(codebook.secret(revoked), RevokedKeyError);
  const foreign = new ReaderKey(await userKeyOf(VECTORS.foreign_user_key), slots);
  const secret = await codebook.secret(foreign);
  await assert.rejects(codebook.openMetadata(foreign, secret), ForeignKeyError);
  const table = await codebook.decodeTable(foreign, secret);
  assert.ok(table.every((found) => found >= 0 && found < 3));
  assert.notDeepEqual([...table], VECTORS.table);
});

test("hosted responses: key, values, probabilities", async () => {
  const decoder = await Decoder.open(VECTORS.codebook, VECTORS.key_bundle, VECTORS.passphrase);
  assert.deepEqual([...decoder.secretTable()], VECTORS.table);
  const codebook = Codebook.parse(VECTORS.codebook);
  const found = await derived(VECTORS.user_key, hex(codebook.header.bytes), "hosted responses v2");
  assert.equal(found, HOSTED.response_key);
  assert.equal(hex(codebook.codebookId), HOSTED.associated_data);
  for (const [i, words] of HOSTED.responses.entries()) {
    const opened = openResponse(words, fromHex(HOSTED.response_key), codebook.codebookId);
    assert.deepEqual([...opened], HOSTED.values[i]);
  }
  const unsigned = HOSTED.responses.map((row: number[]) => Uint32Array.from(row));
  for (const rows of [HOSTED.responses, unsigned, HOSTED.values]) {
    for (const [i, row] of decoder.probabilities(rows).entries()) {
      row.forEach((p, k) => assert.ok(Math.abs(p - HOSTED.probabilities[i][k]) < 1e-6));
    }
    assert.deepEqual(decoder.labels(rows), HOSTED.labels);
  }
});

const HOSTILE = read("hostile.json");
const GOOD: Record<string, string> = {
  key_bundle: VECTORS.key_bundle,
  codebook: VECTORS.codebook,
  ciphertext: VECTORS.ciphertexts[0],
  response: HOSTILE.response,
  public_key_bundle: TO_PUBLIC_KEY.key_bundle,
  private_key: TO_PUBLIC_KEY.private_key_pem,
};
const openedOnce = Decoder.open(VECTORS.codebook, VECTORS.key_bundle, VECTORS.passphrase);
const parsedOnce = X25519PrivateKey.parse(GOOD["private_key"]!, TO_PUBLIC_KEY.passphrase);

/** What an application does, all of it again only if it has to be. */
async function openAll(files: Record<string, string>): Promise<void> {
  const bytes = (name: string): Uint8Array => new TextEncoder().encode(files[name]!);
  const same = (name: string): boolean => files[name] === GOOD[name];
  const decoder = await (same("codebook") && same("key_bundle")
    ? openedOnce
    : Decoder.open(bytes("codebook"), bytes("key_bundle"), VECTORS.passphrase));
  decoder.decrypt([fromHex(files["ciphertext"]!)]);
  parseResponse(files["response"]!);
  const privateKey = await (same("private_key")
    ? parsedOnce
    : X25519PrivateKey.parse(bytes("private_key"), TO_PUBLIC_KEY.passphrase));
  const bundle = await KeyBundle.parse(bytes("public_key_bundle"));
  await bundle.unlock(privateKey);
}

for (const name of Object.keys(GOOD)) {
  test(`hostile changes of the ${name} give Python's errors`, async () => {
    await openAll(GOOD);
    const cases = HOSTILE.cases.filter((found: any) => found.file === name);
    assert.ok(cases.length >= 26);
    for (const { at, remove, insert, error } of cases) {
      const good = GOOD[name]!;
      const changed = good.slice(0, at) + insert + good.slice(at + remove);
      const where = `at ${at}: ${insert.slice(0, 80)}`;
      await assert.rejects(openAll({ ...GOOD, [name]: changed }), { name: error }, where);
    }
  });
}
