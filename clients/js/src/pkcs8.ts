/**
 * Private keys in files: PEM (RFC 7468) around PKCS #8 (RFC 5958), in the clear or encrypted with
 * PBES2 (RFC 8018): scrypt (RFC 7914) or PBKDF2-HMAC-SHA256, and AES-128-CBC or AES-256-CBC.
 */

import { type Bytes, checkSize, decodeBase64, type FileSource, hex, readFile } from "./encoding.js";
import { FormatError, PassphraseError } from "./errors.js";
import {
  decryptCbc,
  passphraseBytes,
  pbkdf2Key,
  scryptKey,
  subtle,
  type WorkOptions,
} from "./primitives.js";

const MAX_PEM_BYTES = 8_192;
const PLAIN = "PRIVATE KEY";
const ENCRYPTED = "ENCRYPTED PRIVATE KEY";

// The cost comes from the file. These bounds keep a page from hanging: scrypt's is the work, and
// the 1 GiB of memory, of the dearest key bundle.
const MAX_SCRYPT_COST = 2 ** 23; // N·r·p
const MAX_SCRYPT_WIDTH = 2 ** 10; // r·p: what is done in one piece
const MAX_PBKDF2_ITERATIONS = 10_000_000;

const INTEGER = 0x02;
const OCTET_STRING = 0x04;
const OBJECT_IDENTIFIER = 0x06;
const SEQUENCE = 0x30;

const PBES2 = "2a864886f70d01050d"; // 1.2.840.113549.1.5.13
const PBKDF2 = "2a864886f70d01050c"; // 1.2.840.113549.1.5.12
const HMAC_SHA256 = "2a864886f70d0209"; // 1.2.840.113549.2.9
const SCRYPT = "2b06010401da47040b"; // 1.3.6.1.4.1.11591.4.11
const AES_CBC_KEY_BYTES: Record<string, number> = {
  "608648016503040102": 16, // 2.16.840.1.101.3.4.1.2
  "60864801650304012a": 32, // 2.16.840.1.101.3.4.1.42
};

/** What is inside of a private key's file. */
export interface PrivateKeyInfo {
  /** The algorithm's object identifier: its DER content in hexadecimal. */
  algorithm: string;
  /** The algorithm's own form of the key. */
  key: Bytes;
}

/** Read one PEM block; `passphrase` exactly if it is encrypted. */
export async function unwrap(
  file: FileSource,
  passphrase: string | undefined,
  options: WorkOptions,
): Promise<PrivateKeyInfo> {
  subtle(); // a page without WebCrypto is told at once
  const data = await readFile(file, "private key", MAX_PEM_BYTES);
  checkSize(data.length, "private key", MAX_PEM_BYTES);
  const text = typeof data === "string" ? data : new TextDecoder().decode(data);
  const source = text.replace(/^\ufeff/, ""); // editors put a byte order mark there
  const encrypted = /^[ \t\n\v\f\r]*-----BEGIN ENCRYPTED PRIVATE KEY-----/.test(source);
  if (encrypted !== (passphrase !== undefined)) {
    throw new PassphraseError(
      encrypted
        ? "The private key is encrypted: pass its passphrase."
        : "The private key is not encrypted: pass no passphrase.",
    );
  }
  const der = block(source, encrypted ? ENCRYPTED : PLAIN);
  if (der === undefined) {
    throw new FormatError(
      `The private key is not one whole PEM block '${ENCRYPTED}' or '${PLAIN}'.`,
    );
  }
  const password = passphrase === undefined ? undefined : passphraseBytes(passphrase);
  let found: PrivateKeyInfo | undefined;
  try {
    found = privateKeyInfo(password === undefined ? der : await decrypt(der, password, options));
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
  }
  if (found === undefined) {
    throw encrypted
      ? new PassphraseError("The passphrase does not open the private key, or it was changed.")
      : new FormatError("The private key is not in the form PKCS #8.");
  }
  return found;
}

/** The DER inside of one PEM block with nothing but white space around it. */
function block(source: string, label: string): Bytes | undefined {
  const words = source.split(/[ \t\n\v\f\r]+/).filter((word) => word !== "");
  const text = words.join(" ");
  const [begin, end] = [`-----BEGIN ${label}----- `, ` -----END ${label}-----`];
  if (!text.startsWith(begin) || !text.endsWith(end)) return undefined;
  const base64 = text.slice(begin.length, -end.length).replaceAll(" ", "");
  try {
    return decodeBase64(base64, label);
  } catch {
    return undefined;
  }
}

// --- what is inside ----------------------------------------------------------

function privateKeyInfo(der: Bytes): PrivateKeyInfo {
  const [version, algorithm, key, ...others] = sequence(only(der), 3, 5);
  const number = integer(version);
  if (number > 1 || others.length > number + 1) malformed(); // 0 has no public key
  return { algorithm: oid(sequence(algorithm, 1, 2)[0]), key: content(key, OCTET_STRING) };
}

async function decrypt(der: Bytes, password: Bytes, options: WorkOptions): Promise<Bytes> {
  const [algorithm, data] = sequence(only(der), 2);
  const [scheme, parameters] = sequence(algorithm, 2);
  if (oid(scheme) !== PBES2) unsupported("in another way than PBES2");
  const [kdf, cipher] = sequence(parameters, 2);
  const [name, iv] = sequence(cipher, 2);
  const size = AES_CBC_KEY_BYTES[oid(name)];
  if (size === undefined) return unsupported("with another cipher than AES-128-CBC or AES-256-CBC");
  const key = await deriveKey(kdf, size, password, options);
  const opened = await decryptCbc(key, content(iv, OCTET_STRING), content(data, OCTET_STRING));
  return opened ?? malformed();
}

async function deriveKey(
  kdf: Element | undefined,
  size: number,
  password: Bytes,
  options: WorkOptions,
): Promise<Bytes> {
  const [name, parameters] = sequence(kdf, 2);
  switch (oid(name)) {
    case SCRYPT: {
      const [salt, ...numbers] = sequence(parameters, 4, 5);
      const [N = 0, r = 0, p = 0, length = size] = numbers.map(integer);
      if (N * r * p > MAX_SCRYPT_COST || r * p > MAX_SCRYPT_WIDTH) {
        unsupported(`with scrypt of the cost N = ${N}, r = ${r}, p = ${p}`);
      }
      const power = N > 1 && (N & (N - 1)) === 0 && N < 2 ** (16 * r);
      if (!power || p < 1 || length !== size) malformed();
      return scryptKey(
        password,
        content(salt, OCTET_STRING),
        { N, r, p },
        size,
        "The private key",
        options,
      );
    }
    case PBKDF2: {
      const [salt, count, ...others] = sequence(parameters, 2, 4);
      const iterations = integer(count);
      const length = others[0]?.tag === INTEGER ? integer(others.shift()) : size;
      const prf = others.shift();
      if (iterations < 1 || length !== size || others.length > 0) malformed();
      if (prf === undefined || oid(sequence(prf, 1, 2)[0]) !== HMAC_SHA256) {
        unsupported("with PBKDF2 of another hash than HMAC-SHA256");
      }
      if (iterations > MAX_PBKDF2_ITERATIONS) {
        unsupported(`with PBKDF2 of ${iterations} iterations`);
      }
      return pbkdf2Key(password, content(salt, OCTET_STRING), iterations, size, options);
    }
    default:
      return unsupported("with a key of neither scrypt nor PBKDF2");
  }
}

function unsupported(how: string): never {
  throw new FormatError(
    `The private key is encrypted ${how}, which this client does not read. Convert it: ` +
      "openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD.pem -out NEW.pem",
  );
}

// --- DER (ITU-T X.690) -------------------------------------------------------

interface Element {
  tag: number;
  body: Bytes;
}

/** Not said as it is: of an encrypted key, it means most often a wrong passphrase. */
class Malformed extends Error {}

function malformed(): never {
  throw new Malformed();
}

/** The elements side by side: tags of one byte, definite lengths in the shortest form. */
function elements(data: Bytes): Element[] {
  const found: Element[] = [];
  for (let at = 0; at < data.length;) {
    const [tag, short = malformed()] = data.subarray(at, at + 2);
    at += 2;
    let length = short;
    if (short >= 0x80) {
      const long = data.subarray(at, at + (short & 0x7f));
      at += long.length;
      length = long.reduce((value, byte) => 256 * value + byte, 0);
      if (length < 0x80 || long[0] === 0) malformed();
    }
    if (at + length > data.length) malformed();
    found.push({ tag: tag!, body: data.slice(at, at + length) });
    at += length;
  }
  return found;
}

function only(der: Bytes): Element {
  const [element, ...others] = elements(der);
  return element !== undefined && others.length === 0 ? element : malformed();
}

function content(element: Element | undefined, tag: number): Bytes {
  return element?.tag === tag ? element.body : malformed();
}

function sequence(element: Element | undefined, min: number, max = min): Element[] {
  const found = elements(content(element, SEQUENCE));
  return found.length >= min && found.length <= max ? found : malformed();
}

/** A number that is not negative; huge ones lose their last digits. */
function integer(element: Element | undefined): number {
  const body = content(element, INTEGER);
  return body.length > 0 && body[0]! < 0x80 ? Number(`0x${hex(body)}`) : malformed();
}

const oid = (element: Element | undefined): string => hex(content(element, OBJECT_IDENTIFIER));
