/**
 * The codebook's mark in the outputs of an export: it tells one version's answers from another's.
 *
 * Outputs of the first columns are multiples of 2⁻²⁴, and the last bits of these multiples say
 * whose they are: half of them that there is a mark, half of them the codebook's id. Float32 and
 * JSON keep them. Who converts or rounds outputs loses them, and nothing is noticed then.
 */
import { type Bytes } from "./encoding.js";
/** Outputs are marked in multiples of 1 / UNITS. */
export declare const UNITS: number;
/** The mark of one codebook. */
export interface Mark {
    /** Multiples are marked modulo this power of two. */
    readonly modulus: number;
    /** How many of the residues every mark has. */
    readonly constant: number;
    /** Of the first columns; none if N < 16. */
    readonly residues: readonly number[];
}
export declare function markOf(codebookId: Bytes, numLabels: number): Mark;
/** Throws `WrongModelError` if one prediction's outputs have the mark of another codebook. */
export declare function checkMark(mark: Mark, outputs: ArrayLike<number>, model: string): void;
