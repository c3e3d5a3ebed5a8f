/**
 * Writes what users get into a folder: `node build.mjs [dist]`.
 *
 * One ES module with everything in it, its types, what `require` finds, and the licences of what it
 * bundles. The same sources and package-lock.json give the same bytes; a test compares them with dist/.
 */

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? join(here, "dist"));

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/index.ts"],
  outfile: join(target, "index.js"),
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  banner: {
    js: "// keras-encryip-client. Apache-2.0. Bundles @noble/curves, hashes, ciphers: LICENSES.txt",
  },
});
copyFileSync(join(here, "src/require.cjs"), join(target, "index.cjs"));
execFileSync(
  join(here, "node_modules/.bin/tsc"),
  ["--project", "tsconfig.build.json", "--outDir", target],
  { cwd: here, stdio: "inherit" },
);
const licences = ["ciphers", "curves", "hashes"].map((name) => {
  const folder = join(here, "node_modules/@noble", name);
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  return `@noble/${name} ${version}\n\n${readFileSync(join(folder, "LICENSE"), "utf8")}`;
});
writeFileSync(join(target, "LICENSES.txt"), licences.join("\n----\n\n"));
