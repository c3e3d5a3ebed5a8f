/** How a bundle's keys are sealed: with a passphrase, or to the user's public key. */

import { ascii, base64Text, type Bytes, decodeBase64, equal, integer, object } from "./encoding.js";
import {
  ArgumentError,
  FormatError,
  KeyRefusedError,
  PassphraseError,
  SignatureError,
} from "./errors.js";
import { KEY_BYTES, X25519PrivateKey, X25519PublicKey } from "./keypair.js";
import {
  MAX_SCRYPT_LOG2_N,
  MIN_SCRYPT_LOG2_N,
  OVERHEAD,
  passphraseBytes,
  SALT_BYTES,
  scryptKey,
  TAG_BYTES,
  unseal,
  type WorkOptions,
} from "./primitives.js";
import { isKeyLength, type Role } from "./keys.js";

const INFO = ascii("encryip key bundle v3");

/** The fields for a passphrase: AES-256-GCM under scrypt. */
export const PASSPHRASE_FIELDS = object({
  salt: base64Text,
  scrypt_log2_n: integer(MIN_SCRYPT_LOG2_N, MAX_SCRYPT_LOG2_N),
  sealed: base64Text,
});

/** The fields for a private key: HPKE to the user's X25519 public key. */
export const PUBLIC_KEY_FIELDS = object({
  encapsulated: base64Text,
  recipient: base64Text,
  sealed: base64Text,
});

type Secret = string | X25519PrivateKey;

/** The sealed part of a bundle. */
export interface Body {
  /** The public key it was made to; `undefined` if a passphrase opens it. */
  readonly recipient: X25519PublicKey | undefined;
  /** The secret bytes. `bundle` names the file in messages; `header` is associated data. */
  open(secret: Secret, bundle: string, header: Bytes, options: WorkOptions): Promise<Bytes>;
}

/** Decode the fields for a passphrase. */
export function passphraseBody(
  fields: ReturnType<typeof PASSPHRASE_FIELDS>,
  roles: readonly Role[],
): Body {
  const salt = decodeBase64(fields.salt, "salt", SALT_BYTES);
  const sealed = decodeSealed(fields.sealed, OVERHEAD, roles);
  const log2N = fields.scrypt_log2_n;
  return {
    recipient: undefined,
    async open(secret, bundle, header, options) {
      if (typeof secret !== "string") {
        throw new ArgumentError(`A passphrase opens ${bundle}: \`secret\` must be it, a string.`);
      }
      const cost = { N: 2 ** log2N, r: 8, p: 1 };
      const what = `Field scrypt_log2_n is ${log2N}`;
      const key = await scryptKey(passphraseBytes(secret), salt, cost, 32, what, options);
      const found = await unlessChanged(unseal(key, sealed, header));
      if (found !== undefined) return found;
      throw new PassphraseError(`The passphrase does not open ${bundle}, or its body was changed.`);
    },
  };
}

/** Decode the fields for a private key. */
export function publicKeyBody(
  fields: ReturnType<typeof PUBLIC_KEY_FIELDS>,
  roles: readonly Role[],
): Body {
  const encapsulated = publicKey(fields.encapsulated, "encapsulated");
  const recipient = publicKey(fields.recipient, "recipient");
  const sealed = decodeSealed(fields.sealed, TAG_BYTES, roles);
  return {
    recipient,
    async open(secret, bundle, header) {
      if (!(secret instanceof X25519PrivateKey)) {
        throw new ArgumentError(
          `The private key of '${recipient.fingerprint}' opens ${bundle}: ` +
            "`secret` must be it, an `X25519PrivateKey`.",
        );
      }
      if (!equal(secret.publicKey.raw, recipient.raw)) {
        throw new KeyRefusedError(
          `The ${bundle} was made to the public key '${recipient.fingerprint}', and not to ` +
            `yours, '${secret.publicKey.fingerprint}'. Send yours to the model's owner.`,
        );
      }
      const found = await unlessChanged(secret.unseal(encapsulated, sealed, INFO, header));
      if (found !== undefined) return found;
      throw new SignatureError(`The header or body of ${bundle} was changed.`);
    },
  };
}

function decodeSealed(text: string, overhead: number, roles: readonly Role[]): Bytes {
  const sealed = decodeBase64(text, "sealed");
  if (isKeyLength(sealed.length - overhead, roles)) return sealed;
  throw new FormatError(`Field sealed has ${sealed.length} bytes, which no key of its roles has.`);
}

async function unlessChanged(opening: Promise<Bytes>): Promise<Bytes | undefined> {
  try {
    return await opening;
  } catch (error) {
    if (!(error instanceof SignatureError)) throw error;
    return undefined;
  }
}

function publicKey(text: string, field: string): X25519PublicKey {
  try {
    return new X25519PublicKey(decodeBase64(text, field, KEY_BYTES));
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
  }
  throw new FormatError(`Field ${field} is not base64 of an X25519 public key that can be used.`);
}
