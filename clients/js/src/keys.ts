/** What a key bundle holds, docs/formats/key-bundle.md; how it reads labels, docs/formats/codebook.md. */

import { sha256 } from "@noble/hashes/sha2.js";

import { ascii, type Bytes } from "./encoding.js";
import { FormatError, KeyRefusedError } from "./errors.js";
import { SCALAR_BYTES, split, UserKey } from "./kem.js";
import { aesBlocks } from "./primitives.js";

const MIN_SLOTS = 256;
const MAX_SLOTS = 4_096;
/** Of slot keys and of label keys. */
const KEY_BYTES = 16;
/** What `labelBlocks` gives for each label. */
export const LABEL_BYTES = 2 * KEY_BYTES;
/** What 8 slots take: 8 bits of the codeword, and 8 slot keys. */
const EIGHT_SLOTS = 1 + 8 * KEY_BYTES;
const TAG = ascii("encryip label mask v2\0");

/**
 * Of labels first, first + 1, …: L_j, and a block whose first two bytes mask the label's slot.
 *
 * Slots are masked because a label has the same one in every codebook of a model: in the clear,
 * they would carry an old decode table to a new numbering.
 *
 * @param key Of purpose `label keys v2`.
 */
export const labelBlocks = (key: Bytes, first: number, count: number): Promise<Bytes> =>
  aesBlocks(key, 2 * first, 2 * count);

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
   * A key of another authority finds random slots, and so random classes.
   *
   * @param blocks Of each label, as `labelBlocks` gives them.
   * @param maskedSlots Of each label, two bytes.
   * @param values e[j, 0] and e[j, 1] of each.
   */
  readLabels(
    blocks: Bytes,
    maskedSlots: ArrayLike<number>,
    values: ArrayLike<number>,
    numClasses: number,
  ): Int32Array {
    const message = new Uint8Array(TAG.length + 2 * KEY_BYTES);
    message.set(TAG);
    const classes = new Int32Array(maskedSlots.length);
    for (let i = 0; i < classes.length; i++) {
      const at = LABEL_BYTES * i;
      const labelKey = blocks.subarray(at, at + KEY_BYTES);
      const slotMask = 256 * blocks[at + KEY_BYTES]! + blocks[at + KEY_BYTES + 1]!;
      const slot = (maskedSlots[i]! ^ slotMask) % this.numSlots;
      const start = this.numSlots / 8 + KEY_BYTES * slot;
      message.set(this.#slots.subarray(start, start + KEY_BYTES), TAG.length);
      message.set(labelKey, TAG.length + KEY_BYTES);
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
