"""What the rows say of each aim: met, missed, or not shown."""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
from scipy.stats import binomtest

from ..forgery.ground import ACCEPTED
from ..ladder import ALONE, LOCKED
from ..trainings import DEFAULTS, SCRATCH
from . import tables
from .numbers import (
    INTERVAL,
    LEVEL,
    NONE,
    figures,
    interval,
    mean,
    number,
    paired,
    percent,
    points,
    within,
)

MISSED, OPEN, MET = "missed", "not shown", "met"
VERDICTS = (MISSED, OPEN, MET)
"""The weakest first."""

AIMED = (1, 5)
"""Labelled samples per class for which P2 is meant."""

LEAD = 0.05
"""Of the best attack over the best without a model: at most."""

LOSS = -0.005
"""Decoded accuracy minus the twin's: at least."""

KEY_SECONDS = 0.01
"""CPU time of a further user's key: at most."""

TINY = 1e-9  # differences of accuracies are not exact

Line = dict[str, str]


def aims(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each aim."""
    parts = (_outsiders, _owners, _tracing, _forgery)
    return pd.DataFrame([line for part in parts for line in part(rows)])


def judged(values: pd.Series, aim: float, at_most: bool) -> str:
    """Met if the whole interval is within the aim, missed if the mean is not."""
    if values.empty:
        return OPEN
    sign = 1 if at_most else -1
    if sign * (mean(values) - aim) > TINY:
        return MISSED
    end = interval(values)[1 if at_most else 0]
    return MET if sign * (end - aim) <= TINY else OPEN


def of_mean(
    claim: str,
    what: str,
    values: pd.Series,
    aim: float,
    at_most: bool = True,
    form: Callable[[float], str] = points,
) -> Line:
    return {
        "verdict": judged(values, aim, at_most),
        "claim": claim,
        "what": what,
        "aim": f"{'≤' if at_most else '≥'} {form(aim)}",
        "found": form(mean(values)) if len(values) else NONE,
        INTERVAL: within(values, form),
        "seeds": str(len(values)),
    }


def of_none(claim: str, what: str, failures: int, trials: int, seeds: int) -> Line:
    """An aim that nothing fails; one seed does not show it. The interval of the share is exact."""
    shown = trials > 0 and seeds > 1
    bounds = binomtest(failures, trials).proportion_ci(LEVEL) if trials else (0.0, 1.0)
    return {
        "verdict": MISSED if failures else MET if shown else OPEN,
        "claim": claim,
        "what": what,
        "aim": "none",
        "found": f"{failures:,} of {trials:,}" if trials else NONE,
        INTERVAL: " … ".join(map(percent, bounds)) + " %" if trials else NONE,
        "seeds": str(seeds),
    }


def _outsiders(rows: pd.DataFrame) -> Iterator[Line]:
    one = figures(rows, ALONE, "one class for all", "accuracy", "n = 0")
    tail = figures(rows, DEFAULTS, tables.LONG_TAIL, "accuracy", "n = 0")
    what = "best attack without labels, minus one class for all, points"
    yield of_mean("P1", what, paired(tables.best(rows, DEFAULTS, 0), one), LEAD)
    what = "attack by known, long-tailed class frequencies, minus one class for all, points"
    yield of_mean("P1", what, paired(tail, one), LEAD)
    for claim, way in (("P2", DEFAULTS), ("P0", LOCKED)):
        for n in AIMED:
            lead = paired(tables.best(rows, way, n), tables.best(rows, ALONE, n))
            what = f"{way}, n = {n}: best attack minus the best without a model, points"
            yield of_mean(claim, what, lead, LEAD)


def _owners(rows: pd.DataFrame) -> Iterator[Line]:
    twin = figures(rows, "twin", "training", "accuracy")
    for way in (DEFAULTS, SCRATCH):
        apart = paired(figures(rows, way, "training", "accuracy"), twin)
        yield of_mean("P3", f"{way}: decoded minus twin, points", apart, LOSS, at_most=False)
    spent = figures(rows, DEFAULTS, "issuing", "cpu seconds a key")
    what, form = "a further user's key, CPU seconds", partial(number, decimals=6)
    yield of_mean("P4", what, spent, KEY_SECONDS, form=form)


def _tracing(rows: pd.DataFrame) -> Iterator[Line]:
    found = tables.proofs(rows)
    if len(found):
        kept = tables.useful(found[found.proof.str.startswith("ours")])
        kept = kept.pivot(index=["tampering", "seed"], columns="proof", values="found")
        seeds = kept.index.get_level_values("seed").nunique()
        both = kept["ours, weights"] | kept["ours, service"]
        for claim, what, seen in (
            ("P7, P8", "lost by both tracers", both),
            ("P7", "lost by the tracer of weights", kept["ours, weights"]),
            ("P8", "lost by the tracer of services", kept["ours, service"]),
            ("P8", "not even shown to be ours", kept["ours, ownership"]),
        ):
            what = f"useful copies, tampered with, that are {what}"
            yield of_none(claim, what, int((~seen.astype(bool)).sum()), len(seen), seeds)
    tables_of = rows[(rows.attack == "decode table") & (rows.metric == "traitor guilty")]
    unnamed = int((~tables_of["value"].astype(bool)).sum())
    yield of_none("P8", "decode tables of unnamed traitors", unnamed, *_counted(tables_of))
    accused = rows[rows.metric.str.endswith("innocents guilty")]
    innocents = int(accused["value"].sum())
    yield of_none("P9", "traces that name innocents", innocents, *_counted(accused))


def _counted(rows: pd.DataFrame) -> tuple[int, int]:
    return len(rows), rows.seed.nunique()


def _forgery(rows: pd.DataFrame) -> Iterator[Line]:
    random = tables.forged(rows, "random keys").set_index([0, "seed"])["value"]
    if len(random):
        broken = int(random["opened"].sum() + random["on the polynomial"].sum())
        tried = random["tried"]
        what = "random keys that open a codebook or are the owner's"
        yield of_none("P6", what, broken, int(tried.sum()), len(tried))
        pooled = tables.pooled_keys(rows)
        t, m = pooled["t"], pooled["users"]
        d = (t // 2).clip(lower=1)  # so many traitors are all named: `find_traitors`
        beyond = pooled["innocents"].sum() + pooled["framed"][m < t + 2 - d].sum()
        beyond += pooled["minted"][m <= t].sum()
        beyond += (pooled["coalitions"] - pooled["all"])[m <= d].sum()
        what = "coalitions that do more than is stated of their size"
        yield of_none("P5, P6", what, int(beyond), int(pooled["coalitions"].sum()), len(tried))
        changed = tables.forged(rows, "changed evidence")
        forged = changed[(changed[0] != "honest") & (changed[0] != "one byte")]
        passed = int(forged["value"].eq(ACCEPTED).sum())
        bits = changed[changed[0] == "one byte"].groupby(1)["value"].sum()
        what = "changed folders of evidence that pass"
        tried = (passed + bits["tried"] - bits["refused"], len(forged) + bits["tried"])
        yield of_none("P9", what, *map(int, tried), forged.seed.nunique())
    claimed = tables.claimed(rows).reset_index()
    if len(claimed):
        others = claimed[claimed["claim"].str.startswith("another authority")]
        passed = int(others["the owner's signature expected"].eq(ACCEPTED).sum())
        what = "forged claims that pass where the owner's signature is expected"
        yield of_none("P9", what, passed, *_counted(others))
        honest = claimed[claimed["claim"].str.startswith("honest")]
        ours = honest["service asked"] == "our model"
        wrong = int((honest["verdict"].eq("guilty") != ours).sum())
        what = "honest claims that miss our model or accuse its twin"
        yield of_none("P8", what, wrong, *_counted(honest))
