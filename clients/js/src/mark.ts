/**
 * The codebook's mark in the outputs of an export: it tells one version's answers from another's.
 *
 * Outputs of the first columns are multiples of 2⁻²⁴, and the last bits of these multiples say
 * whose they are: half of them that there is a mark, half of them the codebook's id. Float32 and
 * JSON keep them. Who converts or rounds outputs loses them, and nothing is noticed then.
 */

import { sha256 } from "@noble/hashes/sha2.js";

import { ascii, type Bytes, concat, hex } from "./encoding.js";
import { WrongModelError } from "./errors.js";

/** Outputs are marked in multiples of 1 / UNITS. */
export const UNITS = 2 ** 24;
const DOMAIN = ascii("keras_encryip codebook mark");
const BITS = 64;
const MOST_BITS = 4;
const LEAST_LABELS = BITS / MOST_BITS;

/** The mark of one codebook. */
export interface Mark {
  /** Multiples are marked modulo this power of two. */
  readonly modulus: number;
  /** How many of the residues every mark has. */
  readonly constant: number;
  /** Of the first columns; none if N < 16. */
  readonly residues: readonly number[];
}

export function markOf(codebookId: Bytes, numLabels: number): Mark {
  const bits = Math.min(MOST_BITS, Math.ceil(BITS / numLabels));
  const columns = numLabels < LEAST_LABELS ? 0 : Math.ceil(BITS / bits);
  const constant = Math.ceil(columns / 2);
  const residues = [
    ...read(DOMAIN, bits, constant),
    ...read(concat(DOMAIN, codebookId), bits, columns - constant),
  ];
  return { modulus: 2 ** bits, constant, residues };
}

/** The digest's first bits, in numbers of `bits` bits. */
function read(seed: Bytes, bits: number, count: number): number[] {
  const digest = BigInt(`0x${hex(sha256(seed))}`);
  return Array.from({ length: count }, (_, i) =>
    Number(BigInt.asUintN(bits, digest >> BigInt(256 - bits * (i + 1)))),
  );
}

/** Throws `WrongModelError` if one prediction's outputs have the mark of another codebook. */
export function checkMark(mark: Mark, outputs: ArrayLike<number>, model: string): void {
  const { modulus, constant, residues } = mark;
  let same = true;
  for (let j = 0; j < residues.length; j++) {
    const units = Math.fround(outputs[j]!) * UNITS;
    if (!Number.isInteger(units)) return;
    const found = units - modulus * Math.floor(units / modulus);
    if (j < constant && found !== residues[j]) return;
    same &&= found === residues[j];
  }
  if (same) return;
  throw new WrongModelError(
    `The outputs are of another version of model '${model}'. Open the codebook of the version ` +
      "that is served, or ask the server for this one.",
  );
}
