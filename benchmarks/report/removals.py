"""Tables of what is left of each proof after tampering (P7, P8)."""

from collections.abc import Mapping
from dataclasses import dataclass

from keras_encryip.tracing.statistics import SIGNIFICANCE

from .formats import NONE, minus, number, of_seeds, over_seeds, p_value, table
from .found import Results

UNTOUCHED = "untouched"


@dataclass(frozen=True)
class Proof:
    """One method of detection, over all rungs and seeds.

    Attributes:
        name: for tables and figures.
        accuracy, p, found: rung → seed → the tampered model's accuracy, the p-value, and
            whether the mark or the traitor is found.
    """

    name: str
    accuracy: Mapping[str, Mapping[int, float]]
    p: Mapping[str, Mapping[int, float]]
    found: Mapping[str, Mapping[int, bool]]

    def cost(self, rung: str) -> dict[int, float]:
        """Seed → what the tampering cost of the same seed's untouched accuracy."""
        before = self.accuracy.get(UNTOUCHED, {})
        after = self.accuracy.get(rung, {})
        return {seed: before[seed] - after[seed] for seed in sorted(before.keys() & after.keys())}


def proofs(results: Results) -> dict[str, Proof]:
    """Those of which there is a cell: ours by weights, service and ownership, then the peers'."""
    own, rungs = results.removal, results.rungs
    found = {}
    if own.cells:
        accuracy = {rung: own.figures(rung, "accuracy") for rung in rungs}
        for name, part in (("weights", "weights"), ("service", "service")):
            p = {rung: own.figures(rung, part, "p_value") for rung in rungs}
            guilty = {rung: _guilty(results, rung, part) for rung in rungs}
            found[name] = Proof(f"ours, {name}", accuracy, p, guilty)
        p = {rung: own.figures(rung, "service", "ownership p_value") for rung in rungs}
        found["ownership"] = Proof("ours, ownership", accuracy, p, _significant(p))
    theirs = results.peer_removal
    for method in results.methods:
        cells = {rung: f"{method}: {rung}" for rung in rungs}
        accuracy = {rung: theirs.figures(key, "accuracy") for rung, key in cells.items()}
        p = {rung: theirs.figures(key, "p_value") for rung, key in cells.items()}
        if any(p.values()):
            found[method] = Proof(method, accuracy, p, _significant(p))
    return found


def _guilty(results: Results, rung: str, part: str) -> dict[int, bool]:
    """A trace that was refused finds nobody."""
    verdicts = results.removal.figures(rung, part, "verdict")
    guilty = results.removal.figures(rung, part, "traitor guilty")
    return {seed: bool(guilty.get(seed, False)) for seed in verdicts}


def _significant(p: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, bool]]:
    return {rung: {s: value <= SIGNIFICANCE for s, value in by.items()} for rung, by in p.items()}


def tables(results: Results) -> list[str]:
    every = proofs(results)
    found = []
    if "weights" in every:
        found.append("Ours, a traitor's personalised copy:\n\n" + ours(results, every))
        if results.removal.of("model"):
            found.append(
                "The decode table itself, which does not depend on weights:\n\n" + decode(results)
            )
    theirs = {method: proof for method, proof in every.items() if method in results.methods}
    if theirs:
        found.append("Peers, by their own detection:\n\n" + peers(results, theirs))
    return found


def ours(results: Results, every: Mapping[str, Proof]) -> str:
    suite = results.removal
    count = len(suite.seeds)
    weights, service, ownership = (every[name] for name in ("weights", "service", "ownership"))
    rows = []
    for rung in (rung for rung in results.rungs if suite.of(rung)):
        innocents = [
            n for part in ("weights", "service")
            for n in suite.figures(rung, part, "innocents guilty").values()
        ]  # fmt: skip
        z = suite.figures(rung, "weights", "z")
        hits = suite.figures(rung, "service", "coincidences")
        asked = sorted(set(suite.figures(rung, "service", "of").values()))
        owned = suite.figures(rung, "service", "ownership")
        rows.append(
            [
                rung,
                over_seeds(weights.accuracy[rung], count),
                minus(weights.accuracy[rung], weights.accuracy.get(UNTOUCHED, {}), count),
                over_seeds(z, count, lambda value: number(value, 1)) if z else "refused",
                of_seeds(weights.found[rung]),
                f"{over_seeds(hits, count, _whole)} of {'/'.join(map(str, asked))}"
                if hits
                else NONE,
                worst(service.p[rung]),
                of_seeds(service.found[rung]),
                " / ".join(str(value) for value in owned.values()) or NONE,
                worst(ownership.p[rung]),
                of_seeds(ownership.found[rung]),
                str(sum(innocents)) if innocents else NONE,
            ]
        )
    header = [
        "tampering",
        "accuracy %",
        "minus untouched, points",
        "weights: z",
        "guilty",
        "service: coincidences",
        "largest p",
        "guilty",
        "ownership inputs",
        "largest p",
        "shown",
        "innocents guilty",
    ]
    return table(header, rows)


def decode(results: Results) -> str:
    suite, path = results.removal, ("model", "table")
    p = suite.figures(*path, "p_value")
    rows = [
        [
            str(seed),
            str(suite.figures("model", "users").get(seed, NONE)),
            number(hits, 0),
            number(suite.figures(*path, "best innocent").get(seed, 0), 0),
            p_value(p[seed]) if seed in p else NONE,
            "yes" if suite.figures(*path, "traitor guilty").get(seed) else "no",
        ]
        for seed, hits in suite.figures(*path, "coincidences").items()
    ]
    header = ["seed", "users", "coincidences", "best innocent", "p", "traitor guilty"]
    return table(header, rows)


def peers(results: Results, every: Mapping[str, Proof]) -> str:
    suite = results.peer_removal
    count = len(suite.seeds)
    rows = []
    for method, proof in every.items():
        for rung in (rung for rung in results.rungs if suite.of(f"{method}: {rung}")):
            key = f"{method}: {rung}"
            trials = sorted(set(suite.figures(key, "trials").values()))
            hits = over_seeds(suite.figures(key, "hits"), count, _whole)
            rows.append(
                [
                    method,
                    rung,
                    over_seeds(proof.accuracy[rung], count),
                    minus(proof.accuracy[rung], proof.accuracy.get(UNTOUCHED, {}), count),
                    f"{hits} of {'/'.join(map(str, trials))}" if trials else NONE,
                    worst(proof.p[rung]),
                    of_seeds(proof.found[rung]),
                ]
            )
    header = ["method", "tampering", "accuracy %", "minus untouched, points", "hits", "largest p"]
    return table([*header, "mark found"], rows)


def worst(p: Mapping[int, float]) -> str:
    return p_value(max(p.values())) if p else NONE


def _whole(value: float) -> str:
    return number(value, 0 if value == int(value) else 1)
