/**
 * Walks JSON text without building what it says.
 *
 * Answers are hostile until proven otherwise: a list of three characters, `[],`, would take some
 * twenty times its size. So the frame of an answer is walked here, and `JSON.parse` gets the rows.
 */
/** Where a value is in the text. */
export interface Span {
    readonly start: number;
    readonly end: number;
    /** It is a list or object with neither these nor strings in it, or a bare word. */
    readonly flat: boolean;
}
/** A part of a list, or of an object: then with its name. */
export interface Part extends Span {
    readonly name: string | undefined;
}
/** The parts of the list or object that starts at `start`. */
export declare function parts(text: string, start: number): Generator<Part>;
/** The value that starts here. */
export declare function span(text: string, start: number): Span;
/** What a string says. */
export declare function string(text: string, { start, end }: Pick<Span, "start" | "end">): string;
/** Behind white space. */
export declare function space(text: string, at: number): number;
