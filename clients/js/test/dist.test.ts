/** What users get: dist/ is what the sources make, and needs nothing else. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { read } from "./files.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const dist = join(root, "dist");

test("dist/ is what `npm run build` makes, byte for byte", () => {
  const made = mkdtempSync(join(tmpdir(), "encryip-dist-"));
  try {
    execFileSync(process.execPath, [join(root, "build.mjs"), made]);
    assert.deepEqual(readdirSync(made), readdirSync(dist));
    for (const name of readdirSync(made)) {
      const same = readFileSync(join(made, name)).equals(readFileSync(join(dist, name)));
      assert.ok(same, `dist/${name} is not what the sources make: npm run build`);
    }
  } finally {
    rmSync(made, { recursive: true });
  }
});

test("the module decodes by itself, and imports nothing", async () => {
  const path = join(dist, "index.js");
  assert.doesNotMatch(readFileSync(path, "utf8"), /^\s*import\b|\bimport\(|\brequire\(|\beval\(/m);
  const client: typeof import("../src/index.js") = await import(path);
  const { codebook, key_bundle, passphrase } = read("codebook.json");
  const { responses, labels } = read("hosted.json");
  const decoder = await client.Decoder.open(codebook, key_bundle, passphrase);
  const answer = client.parseResponse(JSON.stringify({ predictions: responses }));
  assert.equal(answer.kind, "outputs");
  assert.deepEqual(decoder.labels((answer as any).rows), labels);
  const opened = client.Decoder.open(codebook, key_bundle, "wrong");
  await assert.rejects(opened, client.PassphraseError);
  await assert.rejects(opened, client.EncryipError);
  const toOwn = read("public_key_bundle.json");
  const own = await client.X25519PrivateKey.parse(toOwn.private_key_pem, toOwn.passphrase);
  const bundle = await client.KeyBundle.parse(toOwn.key_bundle);
  assert.ok(bundle.recipient instanceof client.X25519PublicKey);
  assert.deepEqual(bundle.header.roles, ["run"]);
  await assert.rejects(bundle.decrypt([], own), client.KeyRefusedError);
});

test("the types name no package that users lack", () => {
  for (const name of readdirSync(dist).filter((file) => file.endsWith(".d.ts"))) {
    assert.doesNotMatch(readFileSync(join(dist, name), "utf8"), /@noble/, name);
  }
});

test("the lock file pins every package, and no registry", () => {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  for (const [path, entry] of Object.entries<any>(lock.packages)) {
    assert.equal(entry.resolved, undefined, path);
    if (path !== "") assert.match(entry.integrity, /^sha512-/, path);
  }
});
