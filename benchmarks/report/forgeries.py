"""Tables of what forgers achieve (P5, P6, and evidence)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..forgery.ground import ACCEPTED
from ..forgery.keys import OUTCOMES
from .formats import NONE, of_seeds, p_value, percent, table
from .found import Results, Suite

WHO = ("the owner", "another authority")


def tables(results: Results) -> list[str]:
    suite = results.forgery
    made = {
        "Random keys:": random_keys,
        "Pooled keys, coalitions of which it is true, over all seeds:": pooled_keys,
        "Claims on invented models, whose service runs something else:": claims,
        "An honest folder of evidence after changes:": evidence,
    }
    found = {title: make(suite) for title, make in made.items()}
    return [f"{title}\n\n{text}" for title, text in found.items() if text]


def random_keys(suite: Suite) -> str:
    rows = [
        [
            str(seed),
            f"{cell['tried']:,}",
            str(cell["on the polynomial"]),
            str(cell["opened"]),
            percent(cell["opened at most"]),
            percent(cell["ordinary labels read"]),
        ]
        for seed, cell in suite.of("random keys").items()
    ]
    header = ["seed", "tried", "on the owner's polynomial", "open the codebook"]
    header += ["open, upper bound %", "ordinary labels read %"]
    return table(header, rows) if rows else ""


# --- pooled keys -------------------------------------------------------------------------


def coalitions(suite: Suite) -> dict[tuple[int, int], dict[str, int]]:
    """(threshold t, members m) → counts, summed over seeds."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for key, cells in suite.cells.items():
        name, _, threshold = key.partition(" = ")
        if name != "pooled keys, t":
            continue
        for cell in cells.values():
            for members, counts in cell.items():
                if not isinstance(counts, dict):
                    continue
                sums = found.setdefault((int(threshold), int(members.split()[0])), {})
                for outcome, value in counts.items():
                    sums[outcome] = sums.get(outcome, 0) + value
    return dict(sorted(found.items()))


def named_up_to(threshold: int) -> int:
    """d of `find_traitors`: so many traitors are all named."""
    return max(1, threshold // 2)


def stated(threshold: int, members: int) -> str:
    """What `keras_encryip.crypto.combined_key.find_traitors` and P6 say of a coalition."""
    if members <= named_up_to(threshold):
        return "all named"
    if members > threshold:
        return "can make keys"
    framing = members >= threshold + 2 - named_up_to(threshold)
    return "not named, may frame" if framing else "not named"


def pooled_keys(suite: Suite) -> str:
    rows = [
        [str(t), str(m), stated(t, m), str(counts["coalitions"])]
        + [str(counts.get(outcome, NONE)) for outcome in OUTCOMES]
        for (t, m), counts in coalitions(suite).items()
    ]
    titles = {
        "opened": "opens",
        "read all": "reads all labels",
        "all": "all named, nobody else",
        "some": "some named",
        "nobody": "nobody named",
        "innocents": "innocents named",
        "framed": "innocents framed on purpose",
        "minted": "new key opens",
        "on the polynomial": "new key is the owner's",
    }
    header = ["t", "users", "stated", "coalitions"]
    return table([*header, *(titles.get(o, o) for o in OUTCOMES)], rows) if rows else ""


# --- claims ------------------------------------------------------------------------------

Row = tuple[str, str, dict[int, dict[str, Any]]]
"""(claim, service, seed → what came out)."""


def claim_rows(suite: Suite) -> Iterator[Row]:
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for seed, cell in suite.of("claims").items():
        for claim, services in cell.items():
            for service, row in services.items() if isinstance(services, dict) else ():
                found.setdefault((claim, service), {})[seed] = row
    for (claim, service), rows in sorted(found.items(), key=lambda item: _claim_order(*item[0])):
        yield claim, service, rows


def _claim_order(claim: str, service: str) -> tuple[int, str, str]:
    places = [n for n, who in enumerate(WHO, 1) if claim.startswith(who)]
    return (places[0] if places else 0, claim, service)


def flags(rows: Mapping[int, dict[str, Any]], field: str, value: Any) -> dict[int, bool]:
    return {seed: row[field] == value for seed, row in rows.items() if field in row}


def claims(suite: Suite) -> str:
    rows = []
    for claim, service, found in claim_rows(suite):
        p = [row["p_value"] for row in found.values()]
        rows.append(
            [
                claim,
                service,
                of_seeds(flags(found, "verdict", "guilty")),
                p_value(min(p)),
                of_seeds(flags(found, "this is the model", "yes")),
                of_seeds(flags(found, "not committed", ACCEPTED)),
                of_seeds(flags(found, "committed", ACCEPTED)),
                of_seeds(flags(found, "the owner's signature expected", ACCEPTED)),
                of_seeds(flags(found, "dated before the release", True)),
            ]
        )
    header = [
        "claim",
        "service asked",
        "guilty",
        "smallest p",
        "ownership shown",
        "evidence, inputs not committed to",
        "evidence, committed to",
        "… the owner's signature expected",
        "… dated before the release",
    ]
    return table(header, rows) if rows else ""


# --- evidence ----------------------------------------------------------------------------


def evidence_rows(suite: Suite) -> dict[str, dict[int, str]]:
    """Change → seed → `accepted` or the refusal."""
    found: dict[str, dict[int, str]] = {}
    for seed, cell in suite.of("evidence").items():
        for name, outcome in cell.items():
            if name in ("machine", "seconds"):
                continue
            if isinstance(outcome, str):
                found.setdefault(name, {})[seed] = outcome
            elif "tried" in outcome:
                refused, tried = outcome["refused"], outcome["tried"]
                text = f"{tried - refused} of {tried} accepted" if refused < tried else None
                found.setdefault(f"{name} changed", {})[seed] = text or f"all {tried} refused"
            else:
                for way, each in outcome.items():
                    found.setdefault(f"{name}, {way}", {})[seed] = each
    return found


def evidence(suite: Suite) -> str:
    rows = [
        [name, " · ".join(sorted({_brief(outcome) for outcome in found.values()}))]
        for name, found in evidence_rows(suite).items()
    ]
    return table(["folder", "`verify_evidence`"], rows) if rows else ""


def _brief(outcome: str) -> str:
    """A refusal without the random parts of files' names."""
    refused = "refused: " + re.sub("[0-9a-f]{16,}", "…", outcome.partition(": ")[2])
    return refused if ": " in outcome else outcome
