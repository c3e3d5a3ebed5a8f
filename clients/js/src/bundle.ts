/** A user's key file: docs/key-bundle.md. */

import { DIGEST_BYTES, decryptLabels } from "./ciphertext.js";
import {
  ascii,
  asciiText,
  base64Text,
  type Bytes,
  canonicalJson,
  decodeBase64,
  integer,
  list,
  literal,
  object,
  parseCanonicalJson,
  text,
} from "./encoding.js";
import { ExpiredKeyError, FormatError, PassphraseError, SignatureError } from "./errors.js";
import { UserKey } from "./kem.js";
import {
  MAX_SCRYPT_LOG2_N,
  MIN_SCRYPT_LOG2_N,
  OVERHEAD,
  passphraseKey,
  PUBLIC_BYTES,
  SALT_BYTES,
  SIGNATURE_BYTES,
  unseal,
  verify,
  type WorkOptions,
} from "./primitives.js";

const MAX_BUNDLE_BYTES = 65_536;
const ANY_MODEL = "*";
const BEGIN = "-----BEGIN ENCRYIP KEY BUNDLE-----\n";
const END = "\n-----END ENCRYIP KEY BUNDLE-----\n";
const DOMAIN = "key bundle v1";
const VERSION = 1;
const USER_KEY_BYTES = 64;

const NAME = text(1, 256);
const TIME = text(20, 20, /^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$/);

const HEADER = object({
  authority: base64Text,
  format: literal("encryip-key-bundle"),
  issued_at: TIME,
  issuer: base64Text,
  issuer_name: NAME,
  key_id: text(16, 16, /^[0-9a-f]{16}$/),
  not_after: TIME,
  not_before: TIME,
  scope: list(NAME, 1, 64),
  subject: NAME,
  version: literal(VERSION),
});

const BODY = object({
  salt: base64Text,
  scrypt_log2_n: integer(MIN_SCRYPT_LOG2_N, MAX_SCRYPT_LOG2_N),
  sealed: base64Text,
});

const FILE = object({ bundle: object({ body: BODY, header: HEADER }), signature: base64Text });

/** What a bundle says in the clear. */
export type BundleHeader = Readonly<ReturnType<typeof HEADER>>;

/** A key bundle whose signature has been checked, still sealed. */
export class KeyBundle {
  readonly #body: { salt: Bytes; log2N: number; sealed: Bytes };

  private constructor(
    readonly header: BundleHeader,
    /** SHA-256 digest of the authority's public key. */
    readonly authority: Bytes,
    /** The authority's Ed25519 public key. */
    readonly issuer: Bytes,
    readonly notBefore: Date,
    readonly notAfter: Date,
    body: { salt: Bytes; log2N: number; sealed: Bytes },
  ) {
    this.#body = body;
  }

  /**
   * Parse a bundle; the signature is checked before anything could be decrypted.
   *
   * Throws `FormatError` if it is malformed, truncated, oversized, or of an unknown version or
   * field; `SignatureError` if the issuer named in the bundle did not sign it.
   */
  static async parse(data: string | Uint8Array): Promise<KeyBundle> {
    const source = asciiText(data, "key bundle", MAX_BUNDLE_BYTES);
    if (!source.startsWith(BEGIN) || !source.endsWith(END)) {
      throw new FormatError(
        "This is not a whole key bundle: its first line must be " +
          `'${BEGIN.trim()}' and its last '${END.trim()}'.`,
      );
    }
    const line = source.slice(BEGIN.length, source.length - END.length);
    refuseOtherVersions(line);
    const { bundle, signature } = parseCanonicalJson(line, FILE, "key bundle");
    const { header, body } = bundle;
    const authority = decodeBase64(header.authority, "authority", DIGEST_BYTES);
    const issuer = decodeBase64(header.issuer, "issuer", PUBLIC_BYTES);
    const notBefore = parseTime(header.not_before, "not_before");
    const notAfter = parseTime(header.not_after, "not_after");
    parseTime(header.issued_at, "issued_at");
    const salt = decodeBase64(body.salt, "salt", SALT_BYTES);
    const sealed = decodeBase64(body.sealed, "sealed", USER_KEY_BYTES + OVERHEAD);
    const signed = decodeBase64(signature, "signature", SIGNATURE_BYTES);
    await verify(issuer, DOMAIN, canonicalJson(bundle), signed, "key bundle");
    const found = { salt, log2N: body.scrypt_log2_n, sealed };
    return new KeyBundle(header, authority, issuer, notBefore, notAfter, found);
  }

  /** Decrypt the user key. Throws `PassphraseError`: wrong passphrase or changed body. */
  async unlock(passphrase: string, options: WorkOptions = {}): Promise<UserKey> {
    const { salt, log2N, sealed } = this.#body;
    const key = await passphraseKey(passphrase, salt, log2N, options);
    let secret: Bytes | undefined;
    try {
      secret = await unseal(key, sealed, ascii(canonicalJson(this.header)));
    } catch (error) {
      if (!(error instanceof SignatureError)) throw error;
    }
    if (secret === undefined) {
      throw new PassphraseError(
        `The passphrase does not open key bundle ${this.header.key_id} ` +
          `(subject '${this.header.subject}'), or its body was changed.`,
      );
    }
    const userKey = await UserKey.fromSecretBytes(secret);
    if (userKey.keyId !== this.header.key_id) {
      throw new FormatError("The key bundle's key_id does not belong to the key inside.");
    }
    return userKey;
  }

  /** Refuse a bundle outside its dates. Advisory: the holder's clock decides. */
  checkDates(now: Date = new Date()): void {
    const { key_id, not_before, not_after } = this.header;
    if (now < this.notBefore) {
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
    ciphertexts: Iterable<Uint8Array>,
    passphrase: string,
    options: WorkOptions = {},
  ): Promise<number[]> {
    this.checkDates();
    return decryptLabels(ciphertexts, await this.unlock(passphrase, options), this.authority);
  }
}

/** A bundle of another version has other fields; say so before any of them is called unknown. */
function refuseOtherVersions(line: string): void {
  let version: unknown = VERSION;
  try {
    version = JSON.parse(line).bundle.header.version;
  } catch {
    // parseCanonicalJson says what is wrong
  }
  if (Number.isInteger(version) && version !== VERSION) {
    throw new FormatError(
      `Key bundle version ${version} is unknown; this release reads ${VERSION}. ` +
        "Ask for a bundle that opens with a passphrase, or for a newer client.",
    );
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
