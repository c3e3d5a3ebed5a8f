/** The mark in an export's outputs: whose they are. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { checkMark, type Mark, markOf, UNITS } from "../src/mark.js";

const ID = Uint8Array.from({ length: 16 }, (_, i) => i);
const OTHER = ID.with(15, 255);

/** As Python's `CodebookMark.put` marks what a model says. */
function put(mark: Mark, outputs: number[]): number[] {
  const { modulus, residues } = mark;
  return outputs.map((value, j) => {
    if (j >= residues.length) return Math.fround(value);
    const residue = residues[j]!;
    const turns = Math.max(0, Math.round((Math.fround(value) * UNITS - residue) / modulus));
    const marked = modulus * turns + residue;
    return (marked > UNITS ? marked - modulus : marked) / UNITS;
  });
}

/** Outputs that add up to 1. */
function draw(count: number): number[] {
  const values = Array.from({ length: count }, () => Math.random() ** 5);
  const sum = values.reduce((a, b) => a + b);
  return values.map((value) => value / sum);
}

const refusal = {
  name: "WrongModelError",
  message: /^The outputs are of another version of model 'pets'\. Open the codebook of the version/,
};

// Made with Python's `CodebookMark(bytes(range(16)), N)`.
test("the residues are Python's", () => {
  for (const [labels, modulus, constant, residues] of [
    [16, 16, 8, "71dffa018d039eb1"],
    [20, 16, 8, "71dffa018d039eb1"],
    [40, 4, 16, "13013133332200012031000321322301"],
    [64, 2, 32, "0111000111011111111110100000000110001101000000111001111010110001"],
    [4096, 2, 32, "0111000111011111111110100000000110001101000000111001111010110001"],
  ] as const) {
    const mark = markOf(ID, labels);
    assert.deepEqual([mark.modulus, mark.constant], [modulus, constant]);
    assert.equal(mark.residues.map((residue) => residue.toString(16)).join(""), residues);
  }
});

test("a version's own outputs pass, another's are refused", () => {
  for (const labels of [16, 17, 22, 33, 63, 64, 65, 704]) {
    const [own, other] = [markOf(ID, labels), markOf(OTHER, labels)];
    const onehots = [0, labels - 1].map((at) => new Array<number>(labels).fill(0).with(at, 1));
    for (const outputs of [...onehots, ...Array.from({ length: 20 }, () => draw(labels))]) {
      const marked = put(other, outputs);
      const json = JSON.stringify(marked.map((value) => Number(value.toPrecision(9))));
      for (const row of [marked, Float32Array.from(marked), JSON.parse(json)]) {
        checkMark(other, row, "pets");
        assert.throws(() => checkMark(own, row, "pets"), refusal);
      }
    }
  }
});

test("one column of another's is enough, and one that says nothing ends it", () => {
  const mark = markOf(ID, 100);
  const marked = put(mark, draw(100));
  for (let at = 0; at < 100; at++) {
    const moved = marked.with(at, marked[at]! + 1 / UNITS);
    if (at < 32 || at >= 64) checkMark(mark, moved, "pets");
    else assert.throws(() => checkMark(mark, moved, "pets"), refusal);
    const rounded = marked.with(40, marked[40]! + 1 / UNITS).with(at, 1e-9);
    if (at < 64) checkMark(mark, rounded, "pets");
    else assert.throws(() => checkMark(mark, rounded, "pets"), refusal);
  }
});

test("outputs without a mark pass", () => {
  for (const labels of [2, 16, 40, 64, 704]) {
    const mark = markOf(ID, labels);
    for (let turn = 0; turn < 50; turn++) {
      const outputs = draw(labels);
      const eighths = outputs.map((value) => Math.round(value * 256) / 256);
      for (const row of [outputs, Float32Array.from(outputs), eighths]) {
        checkMark(mark, row, "pets");
      }
    }
    checkMark(mark, new Array(labels).fill(0), "pets");
    checkMark(mark, new Array(labels).fill(-1 / UNITS), "pets");
  }
});

test("fewer than 16 labels have no mark", () => {
  for (const labels of [2, 3, 15]) assert.deepEqual(markOf(ID, labels).residues, []);
});
