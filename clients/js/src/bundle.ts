/** A user's key file: docs/formats/key-bundle.md. */

import {
  type Body,
  PASSPHRASE_FIELDS,
  passphraseBody,
  PUBLIC_KEY_FIELDS,
  publicKeyBody,
} from "./bodies.js";
import { type CiphertextSource, DIGEST_BYTES, decryptLabels } from "./ciphertext.js";
import {
  ascii,
  asciiText,
  base64Text,
  type Bytes,
  canonicalJson,
  type Check,
  decodeBase64,
  type FileSource,
  list,
  literal,
  object,
  parseCanonicalJson,
  readFile,
  text,
} from "./encoding.js";
import { ExpiredKeyError, FormatError } from "./errors.js";
import type { X25519PrivateKey, X25519PublicKey } from "./keypair.js";
import { BundleKeys, type Role } from "./keys.js";
import { PUBLIC_BYTES, SIGNATURE_BYTES, subtle, verify, type WorkOptions } from "./primitives.js";

const MAX_BUNDLE_BYTES = 196_608;
const ANY_MODEL = "*";
/** How far clocks may differ. */
const LEEWAY_MS = 5 * 60 * 1000;
const BEGIN = "-----BEGIN ENCRYIP KEY BUNDLE-----\n";
const END = "\n-----END ENCRYIP KEY BUNDLE-----\n";
const VERSION = 3;
const DOMAIN = "key bundle v3";
const OLD = /"version":([12])\}\},"signature"/;
const OLD_TAIL = 256;

const NAME = text(1, 256);
const TIME = text(20, 20, /^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$/);

const ROLE = literal("read", "run");

/** Sorted, and each once. */
const ROLES: Check<Role[]> = (value, where) => {
  const roles = list(ROLE, 1, 2)(value, where);
  if (roles.some((role, i) => i > 0 && role <= roles[i - 1]!)) {
    throw new FormatError(`Field ${where} must be sorted, and hold each role once.`);
  }
  return roles;
};

const HEADER = object({
  authority: base64Text,
  format: literal("encryip-key-bundle"),
  issued_at: TIME,
  issuer: base64Text,
  issuer_name: NAME,
  key_id: text(16, 16, /^[0-9a-f]{16}$/),
  not_after: TIME,
  not_before: TIME,
  opens_with: literal("passphrase", "private key"),
  roles: ROLES,
  scope: list(NAME, 1, 64),
  subject: NAME,
  version: literal(VERSION),
});

const SIGNED = object({ body: (value) => value, header: HEADER });

/** The body has the fields that the header's `opens_with` says, and no others. */
const BUNDLE = ((value, where) => {
  const { body, header } = SIGNED(value, where);
  const fields = header.opens_with === "passphrase" ? PASSPHRASE_FIELDS : PUBLIC_KEY_FIELDS;
  return { body: fields(body, `${where}.body`), header };
}) satisfies Check<unknown>;

const FILE = object({ bundle: BUNDLE, signature: base64Text });

/** What a bundle says in the clear. */
export type BundleHeader = Readonly<ReturnType<typeof HEADER>>;

/** A key bundle whose signature has been checked, still sealed. */
export class KeyBundle {
  readonly #body: Body;

  private constructor(
    readonly header: BundleHeader,
    /** SHA-256 digest of the authority's public key. */
    readonly authority: Bytes,
    /** The authority's Ed25519 public key. */
    readonly issuer: Bytes,
    readonly notBefore: Date,
    readonly notAfter: Date,
    body: Body,
  ) {
    this.#body = body;
  }

  /** The public key that it was made to; `undefined` if a passphrase opens it. */
  get recipient(): X25519PublicKey | undefined {
    return this.#body.recipient;
  }

  /**
   * Parse a bundle; the signature is checked before anything could be decrypted.
   *
   * Throws `FormatError` if it is malformed, truncated, oversized, or of an unknown version or
   * field; `SignatureError` if the issuer named in the bundle did not sign it.
   */
  static async parse(file: FileSource): Promise<KeyBundle> {
    subtle(); // a page without WebCrypto is told at once
    const data = await readFile(file, "key bundle", MAX_BUNDLE_BYTES);
    const source = asciiText(data, "key bundle", MAX_BUNDLE_BYTES);
    if (!source.startsWith(BEGIN) || !source.endsWith(END)) {
      throw new FormatError(
        "This is not a whole key bundle: its first line must be " +
          `'${BEGIN.trim()}' and its last '${END.trim()}'.`,
      );
    }
    const line = source.slice(BEGIN.length, source.length - END.length);
    const old = OLD.exec(line.slice(-OLD_TAIL));
    if (old !== null) {
      throw new FormatError(
        `This key bundle has version ${old[1]}, which release 0.3 of keras_encryip reads; this ` +
          `release reads ${VERSION}. Ask the model's owner for a new one, or use release 0.3.`,
      );
    }
    const { bundle, signature } = parseCanonicalJson(line, FILE, "key bundle");
    const { header, body } = bundle;
    const authority = decodeBase64(header.authority, "authority", DIGEST_BYTES);
    const issuer = decodeBase64(header.issuer, "issuer", PUBLIC_BYTES);
    const notBefore = parseTime(header.not_before, "not_before");
    const notAfter = parseTime(header.not_after, "not_after");
    parseTime(header.issued_at, "issued_at");
    const sealed =
      "recipient" in body ? publicKeyBody(body, header.roles) : passphraseBody(body, header.roles);
    const signed = decodeBase64(signature, "signature", SIGNATURE_BYTES);
    await verify(issuer, DOMAIN, canonicalJson(bundle), signed, "key bundle");
    return new KeyBundle(header, authority, issuer, notBefore, notAfter, sealed);
  }

  /**
   * Decrypt the user's keys.
   *
   * @param secret The passphrase, or the private key of the bundle's `recipient`.
   * @param options Report progress, or abort.
   *
   * Throws `ArgumentError` for the other of the two; `PassphraseError`: wrong passphrase or changed
   * body; `KeyRefusedError`: the bundle was made to another public key; `SignatureError`: it was
   * changed since the keys were sealed.
   */
  async unlock(secret: string | X25519PrivateKey, options: WorkOptions = {}): Promise<BundleKeys> {
    const { key_id, subject, roles } = this.header;
    const name = `key bundle ${key_id} (subject '${subject}')`;
    const header = ascii(canonicalJson(this.header));
    const found = await this.#body.open(secret, name, header, options);
    const keys = await BundleKeys.fromSecretBytes(found, roles);
    if (keys.keyId !== key_id) {
      throw new FormatError("The key bundle's key_id does not belong to the key inside.");
    }
    return keys;
  }

  /** Refuse a bundle outside its dates, five minutes for clocks left. Advisory: the holder's clock decides. */
  checkDates(now: Date = new Date()): void {
    const { key_id, not_before, not_after } = this.header;
    if (now.getTime() < this.notBefore.getTime() - LEEWAY_MS) {
      throw new ExpiredKeyError(
        `Key bundle ${key_id} is valid from ${not_before} on; check this machine's clock.`,
      );
    }
    if (now > this.notAfter) {
      throw new ExpiredKeyError(
        `Key bundle ${key_id} expired on ${not_after}. Ask the model's owner for a new one.`,
      );
    }
  }

  /** Whether the bundle's scope names this model. */
  allows(model: string): boolean {
    return this.header.scope.includes(ANY_MODEL) || this.header.scope.includes(model);
  }

  /** Read label ciphertexts with nothing but this bundle: their classes. */
  async decrypt(
    ciphertexts: Iterable<CiphertextSource>,
    secret: string | X25519PrivateKey,
    options: WorkOptions = {},
  ): Promise<number[]> {
    this.checkDates();
    const { reader } = await this.unlock(secret, options);
    return decryptLabels(ciphertexts, reader, this.authority);
  }
}

function parseTime(value: string, field: string): Date {
  const moment = new Date(value);
  // Days and hours that do not exist are invalid, or come out as others.
  const real = !Number.isNaN(moment.getTime()) && !value.startsWith("0000");
  if (!real || moment.toISOString() !== value.replace("Z", ".000Z")) {
    throw new FormatError(`Field ${field} is not a date of the form YYYY-MM-DDThh:mm:ssZ.`);
  }
  return moment;
}
