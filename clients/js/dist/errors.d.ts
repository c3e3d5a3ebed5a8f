/**
 * Every error that this package raises on purpose; the same names as in Python.
 *
 * Catch `EncryipError` for all of them. No message ever contains a passphrase, a key or a
 * decrypted value; each names the file or field, and the fix.
 */
/** Root of every error raised on purpose. */
export declare class EncryipError extends Error {
    name: string;
    /** @param message Names come from files: what is no printable character becomes a space. */
    constructor(message?: string);
}
/** An argument has a wrong type, shape or range. */
export declare class ArgumentError extends EncryipError {
    name: string;
}
/** A file or byte string is malformed, truncated, oversized or of an unknown version. */
export declare class FormatError extends EncryipError {
    name: string;
}
/** A signature, digest or authentication tag does not match: the data was changed. */
export declare class SignatureError extends EncryipError {
    name: string;
}
/** The passphrase is wrong, or the sealed body was changed (the two cannot be told apart). */
export declare class PassphraseError extends EncryipError {
    name: string;
}
/** A valid key that may not read this model. Its children say why. */
export declare class KeyRefusedError extends EncryipError {
    name: string;
}
/** The key was revoked before this codebook was made. */
export declare class RevokedKeyError extends KeyRefusedError {
    name: string;
}
/** The key was issued by another authority than the one that made the codebook. */
export declare class ForeignKeyError extends KeyRefusedError {
    name: string;
}
/** The key bundle is used outside its `not_before` … `not_after` dates. */
export declare class ExpiredKeyError extends KeyRefusedError {
    name: string;
}
/** The key bundle, codebook or ciphertext belongs to another model. */
export declare class WrongModelError extends KeyRefusedError {
    name: string;
}
