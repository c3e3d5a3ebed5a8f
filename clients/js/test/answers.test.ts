/** What model servers answer, and what only looks like it: refused in words, in little memory. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

import { EncryipError } from "../src/errors.js";
import { parseResponse } from "../src/responses.js";

const MODULE = JSON.stringify(new URL("../src/responses.js", import.meta.url).href);

function refuses(body: string, message: RegExp): void {
  assert.throws(
    () => parseResponse(body),
    (error: Error) => {
      assert.equal(error.name, "FormatError", `${error.stack}`);
      assert.match(error.message, message);
      return true;
    },
  );
}

test("any spelling of JSON is read", () => {
  const rows = [
    [0.5, -1e-3, 12],
    [1e2, 0, 3],
  ];
  const others = { 'wild "\\\\': ['"]}', "\\", { a: "[", b: [[], {}] }], none: null, yes: true };
  for (const body of [
    { predictions: rows },
    { ...others, predictions: rows },
    { outputs: rows, ...others },
    { outputs: { ...others, confused: rows } },
    { predictions: rows.map((confused) => ({ ...others, confused })) },
  ]) {
    for (const text of [JSON.stringify(body), JSON.stringify(body, null, "\t")]) {
      for (const spelled of [text, `\n ${text}\r\n`, text.replaceAll('"c', '"\\u0063')]) {
        assert.deepEqual(parseResponse(spelled), { kind: "outputs", rows });
      }
    }
  }
  assert.deepEqual(parseResponse('{"outputs":[[9]],"predictions":[[1]],"predictions":[[2]]}'), {
    kind: "outputs",
    rows: [[2]],
  });
});

test("rows that are no table are named", () => {
  for (const [rows, message] of [
    ["[1,2],[3]", /row 1 has 1, and row 0 has 2\.$/],
    ["[1],[3],[4,5]", /row 2 has 2, and row 0 has 1\.$/],
    ["[]", /row 0 is empty\.$/],
    ["[ ],[ ]", /row 0 is empty\.$/],
    ["[1],[]", /row 1 is empty\.$/],
    ["[1],2", /row 1 is no list of them\.$/],
    ["[1],null", /row 1 is no list of them\.$/],
    ["[1],[[1]]", /row 1 is no list of them\.$/],
    ['[1],["1"]', /row 1 is no list of them\.$/],
    ["[1],[{}]", /row 1 is no list of them\.$/],
    ["[1],[NaN]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[-Infinity]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[1e999]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[null]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[true]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[01]", /row 1 holds NaN, infinity or something else\.$/],
    ["[1],[1,]", /row 1 holds NaN, infinity or something else\.$/],
  ] as const) {
    const message1 = new RegExp(`^The predictions in .* not a table of numbers: ${message.source}`);
    refuses(`{"predictions":[${rows}]}`, message1);
    refuses(`{"outputs":{"confused":[${rows}]}}`, message1);
  }
});

test("what is broken is refused, wherever it breaks", () => {
  const whole = '{"predictions":[{"confused":[0.5,1],"x":["a\\"",{"y":[]}]}],"z":{"b":1}}';
  assert.equal(parseResponse(whole).kind, "outputs");
  for (let end = 0; end < whole.length; end++) {
    refuses(whole.slice(0, end), /^The response is not a JSON object|not a table of numbers/);
  }
  // Any other change is read, or refused in our own words.
  for (let at = 0; at < whole.length; at++) {
    for (const insert of ["", "[", "]", "{", "}", '"', "\\", ",", "\0", "1"]) {
      for (const remove of [0, 1]) {
        try {
          parseResponse(whole.slice(0, at) + insert + whole.slice(at + remove));
        } catch (error) {
          assert.ok(error instanceof EncryipError, `${at} ${insert}: ${error}`);
        }
      }
    }
  }
  for (const body of [
    ...["", " ", "null", "5", '"x"', "[]", `${whole} x`, `${whole}${whole}`, `\ufeff${whole}`],
    ...['{"predictions"}', "{predictions:[[1]]}", '{"predictions":}', '{"predictions":[[1]},'],
    ...['{"predictions":[[1]],}', '{"predictions":[[1],]}', '{"predictions":[[1][2]]}', '{,}'],
    ...['{"predictions":[[1]} ]', '{"a\n":1,"predictions":[[1]]}', '{"a":"\\'],
  ]) {
    refuses(body, /^The response is not a JSON object/);
  }
});

test("an error of the server is quoted, whatever it is", () => {
  const nested = `${"[".repeat(60)}${"]".repeat(60)}`;
  for (const [error, said] of [
    ['"no \\"model\\""', 'no "model"'],
    ['{"toString":1}', '{"toString":1}'],
    ['{"__proto__":null}', '{"__proto__":null}'],
    ["null", "null"],
    [nested, nested],
  ] as const) {
    const body = `{"error":${error}}`;
    assert.throws(() => parseResponse(body), {
      name: "FormatError",
      message: `The model server reported an error: ${said}`,
    });
  }
});

test("depth is bounded", () => {
  for (const [open, close] of [
    ["[", "]"],
    ['{"a":', "}"],
  ]) {
    for (const name of ["predictions", "outputs", "error", "other"]) {
      const deep = `{"${name}":${open!.repeat(1e6)}1${close!.repeat(1e6)}}`;
      refuses(deep, /nested more than 64 deep/);
    }
  }
});

test("what is no text is refused", () => {
  for (const wrong of [undefined, null, {}, { predictions: [[1]] }, new Uint8Array(3)]) {
    const message = /^`json` must be the text of the response/;
    assert.throws(() => parseResponse(wrong as any), { name: "ArgumentError", message });
  }
});

const SMALL = `[${"0.00141,".repeat(703)}1],`;

// Each text has 8 million characters; an engine without that memory ends with a signal.
for (const [name, start, again, end, said] of [
  ["empty rows", '{"predictions":[', "[],", "[]]}", "row 0 is empty"],
  ["empty rows after one", '{"predictions":[[1,2],', "[],", "[]]}", "row 1 is empty"],
  ["rows of other lengths", '{"outputs":[[1,2],', "[1],", "[1]]}", "row 1 has 1, and row 0 has 2"],
  ["empty objects", '{"predictions":[', "{},", "{}]}", "must hold the output"],
  ["empty objects in a row", '{"predictions":[[', "{},", "{}]]}", "row 0 is no list"],
  ["texts in a row", '{"predictions":[[', '"",', '""]]}', "row 0 is no list"],
  ["empty ciphertexts", '{"predictions":[', '{"b64":""},', '{"b64":""}]}', "length: 0 bytes"],
  ["members", "{", '"a":[],', '"a":1}', "has no `predictions`"],
  ["other outputs", '{"x":[', "[],", '[]],"predictions":[[0.5,1]]}', "outputs of 1"],
  ["other lists", '{"outputs":{"x":[', "[{}],", '[]],"confused":[[0.5,1]]}}', "outputs of 1"],
  ["an error", '{"error":[', "[],", "[]]}", "reported an error: [[],[],"],
  ["a long text", '{"error":"', "\\\\\\\\", '"}', "reported an error: \\\\\\"],
  ["open lists", "", "[", "", "not a JSON object"],
  ["zeros", '{"predictions":[[', "0,".repeat(352), "0]]}", "outputs of 1"],
  ["rows", '{"predictions":[', SMALL, `[${"0,".repeat(703)}1]]}`, "outputs of 1422"],
] as const) {
  test(`four times its size is enough for ${name}`, () => {
    const times = Math.floor(8e6 / again.length);
    const script = `
      import { parseResponse } from ${MODULE};
      const text = ${JSON.stringify(start)} + ${JSON.stringify(again)}.repeat(${times}) +
        ${JSON.stringify(end)};
      try {
        console.log("outputs of " + parseResponse(text).rows.length);
      } catch (error) {
        console.log(error.name + ": " + error.message);
      }`;
    const limit = "--max-old-space-size=48"; // MB: 4 · 8, the text, and what the engine has
    const arguments_ = [limit, "--input-type=module", "--eval", script];
    const run = spawnSync(process.execPath, arguments_, { encoding: "utf8" });
    assert.equal(run.signal, null, run.stderr.slice(0, 500));
    assert.ok(run.stdout.includes(said), run.stdout.slice(0, 300));
    assert.match(run.stdout, /^(FormatError: |outputs of )/);
  });
}
