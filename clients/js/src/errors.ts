/**
 * Every error that this package raises on purpose; the same names as in Python.
 *
 * Catch `EncryipError` for all of them. No message ever contains a passphrase, a key or a
 * decrypted value; each names the file or field, and the fix.
 */

/** Root of every error raised on purpose. */
export class EncryipError extends Error {
  override name = "EncryipError";

  /** @param message Names come from files: what is no printable character becomes a space. */
  constructor(message?: string) {
    super(message?.replace(/[\p{C}\p{Z}]/gu, " "));
  }
}

/** An argument has a wrong type, shape or range. */
export class ArgumentError extends EncryipError {
  override name = "ArgumentError";
}

/** A file or byte string is malformed, truncated, oversized or of an unknown version. */
export class FormatError extends EncryipError {
  override name = "FormatError";
}

/** A signature, digest or authentication tag does not match: the data was changed. */
export class SignatureError extends EncryipError {
  override name = "SignatureError";
}

/** The passphrase is wrong, or the sealed body was changed (the two cannot be told apart). */
export class PassphraseError extends EncryipError {
  override name = "PassphraseError";
}

/** A valid key that may not read this model. Its children say why. */
export class KeyRefusedError extends EncryipError {
  override name = "KeyRefusedError";
}

/** The key was revoked before this codebook was made. */
export class RevokedKeyError extends KeyRefusedError {
  override name = "RevokedKeyError";
}

/** The key was issued by another authority than the one that made the codebook. */
export class ForeignKeyError extends KeyRefusedError {
  override name = "ForeignKeyError";
}

/** The key bundle is used outside its `not_before` … `not_after` dates. */
export class ExpiredKeyError extends KeyRefusedError {
  override name = "ExpiredKeyError";
}

/** The key bundle, codebook or ciphertext belongs to another model. */
export class WrongModelError extends KeyRefusedError {
  override name = "WrongModelError";
}
