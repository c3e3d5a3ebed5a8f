/** What a key bundle holds, docs/key-bundle.md; how it reads labels, docs/codebook.md. */

import { sha256 } from "@noble/hashes/sha2.js";

import { ascii, type Bytes } from "./encoding.js";
import { FormatError, KeyRefusedError } from "./errors.js";
import { SCALAR_BYTES, split, UserKey } from "./kem.js";

const MIN_SLOTS = 256;
export const MAX_SLOTS = 4_096;
/** Of slot keys and of label keys. */
export const KEY_BYTES = 16;
/** What 8 slots take: 8 bits of the codeword, and 8 slot keys. */
const EIGHT_SLOTS = 1 + 8 * KEY_BYTES;
const TAG = ascii("encryip label mask v2\0");

/** What a key is for: to read models' answers, or to run models. */
export type Role = "read" | "run";

/** Whether a key with these roles can have this many bytes. */
export function isKeyLength(length: number, roles: readonly Role[]): boolean {
  const rest = length - SCALAR_BYTES * (1 + roles.length);
  if (!roles.includes("read")) return rest === 0;
  const slots = 8 * (rest / EIGHT_SLOTS);
  return rest % EIGHT_SLOTS === 0 && slots >= MIN_SLOTS && slots <= MAX_SLOTS;
}

/** A point on the reading polynomial, and for each slot a bit and a slot key. */
export class ReaderKey {
  readonly #slots: Bytes;

  /** M, the number of slots. */
  readonly numSlots: number;

  /** @param slots Codeword ‖ slot keys. */
  constructor(
    readonly point: UserKey,
    slots: Bytes,
  ) {
    this.#slots = slots;
    this.numSlots = 8 * (slots.length / EIGHT_SLOTS);
  }

  get keyId(): string {
    return this.point.keyId;
  }

  /**
   * The classes of labels: (e[j, v] − mask) mod K, where v is the user's bit at the label's slot.
   *
   * @param labelKeys L_j of each, 16 bytes: AES blocks under the key of purpose `label keys v2`.
   * @param slots Of each label, below `numSlots`.
   * @param values e[j, 0] and e[j, 1] of each.
   */
  readLabels(
    labelKeys: Bytes,
    slots: ArrayLike<number>,
    values: ArrayLike<number>,
    numClasses: number,
  ): Int32Array {
    const message = new Uint8Array(TAG.length + 2 * KEY_BYTES);
    message.set(TAG);
    const classes = new Int32Array(slots.length);
    for (let i = 0; i < classes.length; i++) {
      const slot = slots[i]!;
      const start = this.numSlots / 8 + KEY_BYTES * slot;
      message.set(this.#slots.subarray(start, start + KEY_BYTES), TAG.length);
      message.set(labelKeys.subarray(KEY_BYTES * i, KEY_BYTES * (i + 1)), TAG.length + KEY_BYTES);
      const { buffer, byteOffset } = sha256(message);
      const digest = new DataView(buffer, byteOffset);
      let mask = 0;
      for (let word = 0; word < 4; word++) {
        // K ≤ 2²⁰: below 2⁵², so exact.
        mask = (mask * 2 ** 32 + digest.getUint32(4 * word)) % numClasses;
      }
      const bit = (this.#slots[slot >> 3]! >> (7 - (slot & 7))) & 1;
      classes[i] = (values[2 * i + bit]! - mask + numClasses) % numClasses;
    }
    return classes;
  }
}

/** One user's keys, by role. */
export class BundleKeys {
  readonly #reader: ReaderKey | undefined;

  private constructor(
    readonly keyId: string,
    reader: ReaderKey | undefined,
  ) {
    this.#reader = reader;
  }

  /** Read z ‖ P(z) of each role ‖ with `read`: codeword ‖ slot keys. */
  static async fromSecretBytes(data: Bytes, roles: readonly Role[]): Promise<BundleKeys> {
    if (!isKeyLength(data.length, roles)) {
      throw new FormatError(`A key bundle's keys never have ${data.length} bytes.`);
    }
    const [z, ...values] = split(data.slice(0, SCALAR_BYTES * (1 + roles.length)), SCALAR_BYTES);
    const points = await Promise.all(values.map((value) => UserKey.fromSecretBytes(z!, value)));
    const slots = data.slice(SCALAR_BYTES * (1 + roles.length));
    const reader = slots.length === 0 ? undefined : new ReaderKey(points[0]!, slots);
    return new BundleKeys(points[0]!.keyId, reader);
  }

  /** What reads models. Throws `KeyRefusedError` without the role `read`. */
  get reader(): ReaderKey {
    if (this.#reader !== undefined) return this.#reader;
    throw new KeyRefusedError(
      `Key ${this.keyId} runs models, and does not read their answers: ask the model's owner for ` +
        "a key bundle with the role 'read'.",
    );
  }
}
