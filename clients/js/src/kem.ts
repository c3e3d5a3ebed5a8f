/** Headers, user keys and what these open: docs/formats/codebook.md, section 2. */

import { mulAddUnsafe } from "@noble/curves/abstract/curve.js";
import type { WeierstrassPoint } from "@noble/curves/abstract/weierstrass.js";
import { p256 } from "@noble/curves/nist.js";

import { ascii, type Bytes, equal, hex } from "./encoding.js";
import { FormatError, RevokedKeyError } from "./errors.js";
import { hkdf, taggedDigest } from "./primitives.js";

const MAX_THRESHOLD = 64;
export const SCALAR_BYTES = 32;
const POINT_BYTES = 33;
const { Fn } = p256.Point;

type Point = WeierstrassPoint<bigint>;

/** Which key a secret gives: docs/formats/codebook.md, section 2. */
export type Purpose = "label keys v2" | "model metadata v2" | "hosted responses v2";

/** A scalar in 1 … q−1 from 32 big-endian bytes. */
function decodeScalar(data: Uint8Array, what: string): bigint {
  const value = BigInt(`0x${hex(data)}`);
  if (value === 0n || value >= Fn.ORDER) {
    throw new FormatError(`${what} is not a scalar in 1 … q−1 of ${SCALAR_BYTES} bytes.`);
  }
  return value;
}

/** A point from 33 bytes in SEC 1 compressed form: on the curve, canonical. */
function decodePoint(data: Uint8Array, what: string): Point {
  let point: Point | undefined;
  try {
    point = p256.Point.fromBytes(data);
  } catch {
    // said below
  }
  if (point === undefined || !equal(point.toBytes(true), data)) {
    throw new FormatError(`${what} is not a compressed point on P-256.`);
  }
  return point;
}

export function split(data: Bytes, size: number): Bytes[] {
  return Array.from({ length: data.length / size }, (_, i) =>
    data.subarray(i * size, (i + 1) * size),
  );
}

/** Coefficients λ with P(0) = Σ λ_i·P(x_i), for distinct and nonzero x_i. */
export function lagrangeAtZero(nodes: bigint[]): bigint[] {
  return nodes.map((own) => {
    const others = nodes.filter((x) => x !== own);
    const numerator = others.reduce((product, x) => Fn.mul(product, x), 1n);
    return Fn.div(
      numerator,
      others.reduce((product, x) => Fn.mul(product, Fn.sub(x, own)), 1n),
    );
  });
}

/** A KEM ciphertext: t ‖ x_1 … x_t ‖ R ‖ H_1 … H_t. Public. */
export class Header {
  /** @internal */
  private constructor(
    readonly bytes: Bytes,
    readonly nodes: bigint[],
    /** @internal R, H_1 … H_t */
    readonly points: Point[],
  ) {}

  get threshold(): number {
    return this.nodes.length;
  }

  /** Read and check a header; every point is decoded, so a bad one fails here. */
  static parse(bytes: Bytes): Header {
    const threshold = bytes[0] ?? 0;
    const size = 1 + threshold * SCALAR_BYTES + (threshold + 1) * POINT_BYTES;
    if (threshold < 1 || threshold > MAX_THRESHOLD || bytes.length !== size) {
      throw new FormatError("A header has a wrong length or threshold.");
    }
    const start = 1 + threshold * SCALAR_BYTES;
    const nodes = split(bytes.subarray(1, start), SCALAR_BYTES).map((node) =>
      decodeScalar(node, "Header node"),
    );
    if (nodes.some((node, i) => i > 0 && node <= nodes[i - 1]!)) {
      throw new FormatError("Header nodes are not strictly increasing.");
    }
    const points = split(bytes.subarray(start), POINT_BYTES).map((point) =>
      decodePoint(point, "Header point"),
    );
    return new Header(bytes, nodes, points);
  }

  /** SHA-256 over a domain tag and the bytes: the salt of every derived key. */
  digest(): Promise<Bytes> {
    return taggedDigest("header v1", this.bytes);
  }
}

/** What a header opens to, as keys for named purposes. */
export class SharedSecret {
  readonly #point: Bytes;
  readonly #salt: Bytes;

  constructor(point: Bytes, salt: Bytes) {
    this.#point = point;
    this.#salt = salt;
  }

  /** The key for one purpose: 32 bytes. */
  derive(purpose: Purpose): Promise<Bytes> {
    return hkdf(this.#point, this.#salt, ascii(purpose));
  }
}

/** One point (z, P(z)) of the owner's polynomial. Shows its `keyId` only. */
export class UserKey {
  readonly #z: bigint;
  readonly #value: bigint;

  private constructor(
    z: bigint,
    value: bigint,
    /** 16 hexadecimal digits that name the key and tell nothing about P(z). */
    readonly keyId: string,
  ) {
    this.#z = z;
    this.#value = value;
  }

  /** Read z and P(z), 32 bytes each. */
  static async fromSecretBytes(z: Bytes, value: Bytes): Promise<UserKey> {
    const scalars = [decodeScalar(z, "User key z"), decodeScalar(value, "User key value")] as const;
    return new UserKey(...scalars, hex(await taggedDigest("key id v1", z)).slice(0, 16));
  }

  /**
   * The header's secret S = (λ_0·P(z))·R + Σ λ_j·H_j.
   *
   * Throws `RevokedKeyError` if z is one of the header's nodes.
   */
  async decapsulate(header: Header): Promise<SharedSecret> {
    if (header.nodes.includes(this.#z)) {
      throw new RevokedKeyError("This key was revoked when the header was made.");
    }
    const [own, ...others] = lagrangeAtZero([this.#z, ...header.nodes]) as [bigint, ...bigint[]];
    const [first, ...rest] = header.points as [Point, ...Point[]];
    // The one secret scalar goes the slow way; z and the nodes are public.
    const secret = first
      .multiply(Fn.mul(own, this.#value))
      .add(mulAddUnsafe(p256.Point, rest, others));
    if (secret.is0()) {
      throw new FormatError("The header carries no secret: it opens to the point at infinity.");
    }
    return new SharedSecret(new Uint8Array(secret.toBytes(true)), await header.digest());
  }
}
