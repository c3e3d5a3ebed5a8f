/**
 * Decoding in a web page or in node, without TensorFlow:
 *
 *     const decoder = await Decoder.open(codebook, bundle, "correct horse");
 *     const answer = parseResponse(await response.text());
 *     if (answer.kind === "outputs") decoder.names(answer.rows); // ["seven", "two", …]
 *
 * docs/guides/javascript.md
 */
export { type BundleHeader, KeyBundle } from "./bundle.js";
export type { CiphertextSource } from "./ciphertext.js";
export { Decoder, type Guess, type RowOptions, type Rows } from "./decoder.js";
export type { ByteSource, FileSource } from "./encoding.js";
export * from "./errors.js";
export { X25519PrivateKey, X25519PublicKey } from "./keypair.js";
export type { WorkOptions } from "./primitives.js";
export { type Answer, parseResponse } from "./responses.js";
