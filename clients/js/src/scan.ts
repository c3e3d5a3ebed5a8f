/**
 * Walks JSON text without building what it says.
 *
 * Answers are hostile until proven otherwise: a list of three characters, `[],`, would take some
 * twenty times its size. So the frame of an answer is walked here, and `JSON.parse` gets the rows.
 */

import { FormatError } from "./errors.js";

const MAX_DEPTH = 64;
const [QUOTE, BACKSLASH, BRACKET, BRACE] = [0x22, 0x5c, 0x5b, 0x7b];
/** From `[` to `]`, and from `{` to `}`. */
const TO_CLOSING = 2;

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
export function* parts(text: string, start: number): Generator<Part> {
  const named = text.charCodeAt(start) === BRACE;
  const closing = String.fromCharCode(text.charCodeAt(start) + TO_CLOSING);
  let at = space(text, start + 1);
  if (text[at] === closing) return;
  for (;;) {
    let name: string | undefined;
    if (named) {
      if (text.charCodeAt(at) !== QUOTE) malformed(at);
      const end = stringEnd(text, at);
      name = string(text, { start: at, end });
      at = space(text, end);
      if (text[at] !== ":") malformed(at);
      at = space(text, at + 1);
    }
    const value = span(text, at);
    yield { name, ...value };
    at = space(text, value.end);
    if (text[at] === closing) return;
    if (text[at] !== ",") malformed(at);
    at = space(text, at + 1);
  }
}

/** The value that starts here. */
export function span(text: string, start: number): Span {
  const first = text.charCodeAt(start);
  if (first === QUOTE) return { start, end: stringEnd(text, start), flat: false };
  if (first !== BRACKET && first !== BRACE) {
    let end = start;
    while (end < text.length && !' \t\n\r,:[]{}"'.includes(text[end]!)) end++;
    return end > start ? { start, end, flat: true } : malformed(start);
  }
  const marks = /["[\]{}]/g; // some ten times faster than a loop over characters
  const closing: number[] = [];
  let flat = true;
  marks.lastIndex = start;
  while (marks.test(text)) {
    const at = marks.lastIndex - 1;
    const code = text.charCodeAt(at);
    if (code === QUOTE) {
      flat = false;
      marks.lastIndex = stringEnd(text, at);
    } else if (code === BRACKET || code === BRACE) {
      flat &&= at === start;
      closing.push(code + TO_CLOSING);
      if (closing.length > MAX_DEPTH) {
        throw new FormatError(`The response is nested more than ${MAX_DEPTH} deep.`);
      }
    } else {
      if (code !== closing.pop()) malformed(at);
      if (closing.length === 0) return { start, end: at + 1, flat };
    }
  }
  return malformed(text.length);
}

/** What a string says. */
export function string(text: string, { start, end }: Pick<Span, "start" | "end">): string {
  try {
    return JSON.parse(text.slice(start, end)) as string;
  } catch {
    return malformed(start);
  }
}

function stringEnd(text: string, start: number): number {
  for (let at = start; ;) {
    at = text.indexOf('"', at + 1);
    if (at < 0) malformed(text.length);
    let escape = at;
    while (text.charCodeAt(escape - 1) === BACKSLASH) escape--;
    if ((at - escape) % 2 === 0) return at + 1;
  }
}

/** Behind white space. */
export function space(text: string, at: number): number {
  while (" \t\n\r".includes(text[at] ?? "x")) at++;
  return at;
}

function malformed(at: number): never {
  throw new FormatError(`The response is not a JSON object: it is malformed at character ${at}.`);
}
