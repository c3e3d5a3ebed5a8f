"""The tables: each made from the rows of one data set, its cells as text."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from keras_encryip.tracing.statistics import SIGNIFICANCE

from ..attacks import ATTACKS
from ..forgery import FORGER
from ..forgery.ground import ACCEPTED
from ..forgery.keys import OUTCOMES
from ..ladder import ALONE, GRID, LOCKED, with_labels
from ..peers import PEERS
from ..removal import TAMPERINGS
from ..trainings import DEFAULTS, MAIN
from .numbers import (
    INTERVAL,
    NONE,
    figures,
    mean,
    number,
    p_value,
    paired,
    percent,
    points,
    seconds,
    spread,
    within,
)

METHODS = [kind.name for kind in PEERS]
BEFORE = "classifier after one cycle"
LONG_TAIL = "frequencies, long tail"
UNTOUCHED = "untouched"
KEPT = 0.05
"""Loss of accuracy that still leaves a useful model."""

USERS = (2, 10, 100, 1000)


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Where the rows come from."""
    sizes = "; ".join(rows[rows.metric == "size"]["value"].unique())
    return pd.DataFrame(
        {
            "release": version,
            "seeds": ", ".join(map(str, found.seed.unique())),
            "rows": f"{len(found):,}",
            "size": sizes,
            "machine": machine,
        }
        for (version, machine), found in rows.groupby(["version", "machine"], sort=False)
    )


def ways(rows: pd.DataFrame) -> list[str]:
    """To protect, of which there are rows."""
    return [way for way in (*MAIN, *GRID) if way in set(rows.method)]


def samples(rows: pd.DataFrame) -> list[int]:
    """The n of which there are attacks with labels."""
    return sorted({int(s[4:]) for s in rows.setting.unique() if s.startswith("n = ")} - {0})


def accuracies(rows: pd.DataFrame, *, labelled: bool) -> pd.DataFrame:
    """Of the attacks with labels, or of those without, that are registered."""
    names = [attack.name for attack in ATTACKS.values() if attack.labelled == labelled]
    found = rows[rows.attack.isin(names) & (rows.metric == "accuracy")]
    return found.astype({"value": float})


def best(rows: pd.DataFrame, method: str, n: int) -> pd.Series:
    """Seed → accuracy of the best attack of that seed that an outsider can reach.

    Without labels, of those who do not know how frequent classes are.
    """
    found = accuracies(rows[rows.method == method], labelled=n > 0)
    reached = ~found.attack.isin([LONG_TAIL, "clusters matched by an oracle"])
    return found[(found.setting == with_labels(n)) & reached].groupby("seed")["value"].max()


# --- accuracy, outsiders -----------------------------------------------------------------


def trained(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Name → seed → test accuracy."""
    found = {
        "twin": figures(rows, "twin", "training", "accuracy"),
        BEFORE: figures(rows, "twin", "training", "accuracy before"),
        **{m: figures(rows, m, "training", "accuracy") for m in (*ways(rows), *METHODS)},
    }
    return {name: values for name, values in found.items() if len(values)}


def accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """Of key holders, against the twin."""
    found = trained(rows)
    return pd.DataFrame(
        {"": name}
        | {f"seed {s}": percent(values[s]) if s in values else NONE for s in rows.seed.unique()}
        | {
            "mean %": spread(values),
            "minus twin, points": spread(paired(values, found["twin"]), points),
            INTERVAL: within(paired(values, found["twin"]), points),
        }
        for name, values in found.items()
    )


def attacks(rows: pd.DataFrame) -> pd.DataFrame:
    """Every attack with labels on the defaults, and those that need no model."""
    found = accuracies(rows[rows.method.isin([DEFAULTS, ALONE])], labelled=True)
    return _over_seeds(found, ["method", "attack"], "setting", rows.seed.nunique())


def best_attacks(rows: pd.DataFrame) -> pd.DataFrame:
    """The best of each seed, for every way; and how far it is above the best without a model."""
    text = partial(spread, of=rows.seed.nunique())
    lines = []
    for way in (*ways(rows), LOCKED, ALONE):
        found = {n: best(rows, way, n) for n in samples(rows)}
        line = {"attacked": way, **{f"best %, n = {n}": text(best) for n, best in found.items()}}
        for n, reached in found.items():
            lead = paired(reached, best(rows, ALONE, n))
            line[f"over no model, n = {n}"] = text(lead, points)
        lines.append(line)
    return pd.DataFrame(lines)


def unlabelled(rows: pd.DataFrame) -> pd.DataFrame:
    known = rows.method.isin([ALONE, LOCKED, *ways(rows)])
    found = accuracies(rows[known], labelled=False)
    return _over_seeds(found, ["method"], "attack", rows.seed.nunique())


def _over_seeds(found: pd.DataFrame, lines: list[str], columns: str, of: int) -> pd.DataFrame:
    made = found.groupby([*lines, columns], sort=False)["value"].agg(partial(spread, of=of))
    return made.unstack(sort=False).reset_index()


# --- removal -----------------------------------------------------------------------------

PROOFS = {
    "ours, weights": (DEFAULTS, "weights: z", "weights: p_value", "weights: traitor guilty"),
    "ours, service": (
        DEFAULTS,
        "service: coincidences",
        "service: p_value",
        "service: traitor guilty",
    ),
    "ours, ownership": (DEFAULTS, None, "service: ownership p_value", None),
    **{name: (name, "hits", "p_value", None) for name in METHODS},
}
"""Proof → method, score, p-value, and verdict, if that is another than the p-value's."""


def proofs(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each (proof, tampering, seed). A trace that was refused finds nobody."""
    made = []
    for proof, (method, score, p, verdict) in PROOFS.items():
        found = rows[(rows.method == method) & rows.attack.isin(TAMPERINGS)]
        if found.empty:
            continue
        found = found.sort_values("attack", key=lambda a: a.map(TAMPERINGS.index), kind="stable")
        found = found.assign(tampering=(found.attack + " " + found.setting).str.strip())
        wide = found.pivot(index=["tampering", "seed"], columns="metric", values="value")
        wide = wide.loc[found.tampering.unique()].reset_index()
        right, chance = wide["accuracy"].astype(float), wide[p].astype(float)
        before = wide["seed"].map(
            right[wide["tampering"] == UNTOUCHED].groupby(wide["seed"]).first()
        )
        seen = wide[verdict].eq(True) if verdict else chance <= SIGNIFICANCE
        line = wide[["tampering", "seed"]].assign(proof=proof, accuracy=right, p=chance, found=seen)
        scores = wide[score].astype(float) if score else float("nan")
        made.append(line.assign(score=scores, cost=before - right))
    return pd.concat(made) if made else pd.DataFrame(columns=["proof", "tampering", "seed"])


def useful(proof: pd.DataFrame) -> pd.DataFrame:
    """Where a tampering leaves a model that is worth stealing."""
    return proof[proof.cost <= KEPT + 1e-9]


def count_of(flags: pd.Series) -> str:
    return f"{int(flags.sum())} of {len(flags)}" if len(flags) else NONE


def removal(rows: pd.DataFrame) -> pd.DataFrame:
    text = partial(spread, of=rows.seed.nunique())
    return pd.DataFrame(
        {
            "proof": proof,
            "tampering": tampering,
            "accuracy %": text(found.accuracy),
            "minus untouched, points": text(-found.cost, points),
            "score": text(found.score.dropna(), partial(number, decimals=1)),
            "largest p": p_value(found.p.max()) if found.p.notna().any() else NONE,
            "found": count_of(found.found),
        }
        for (proof, tampering), found in proofs(rows).groupby(["proof", "tampering"], sort=False)
    )


# --- forgery -----------------------------------------------------------------------------


def forged(rows: pd.DataFrame, attack: str) -> pd.DataFrame:
    """(setting, seed, value, and the parts 0 … 2 of the metric's name)."""
    found = rows[(rows.method == FORGER) & (rows.attack == attack) & (rows.metric != "seconds")]
    if found.empty:
        return pd.DataFrame(columns=["setting", "seed", "value", 0, 1, 2], dtype=str)
    parts = found.metric.str.split(": ", expand=True).reindex(columns=range(3))
    return found[["setting", "seed", "value"]].join(parts)


def pooled_keys(rows: pd.DataFrame) -> pd.DataFrame:
    """Coalitions of m users at threshold t, counted over seeds."""
    found = forged(rows, "pooled keys")
    t, m = found.setting.str[4:].astype(int), found[0].str.split().str[0].astype(int)
    made = found.assign(t=t, users=m).astype({"value": int})
    made = made.pivot_table(index=["t", "users"], columns=1, values="value", aggfunc="sum")
    return made.reindex(columns=["coalitions", *OUTCOMES]).reset_index()


def claimed(rows: pd.DataFrame) -> pd.DataFrame:
    """(claim, service, seed) × what came out."""
    found = forged(rows, "claims").pivot(index=[0, 1, "seed"], columns=2, values="value")
    return found.rename_axis(["claim", "service asked", "seed"])


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "guilty": ("verdict", "guilty"),
        "ownership shown": ("this is the model", "yes"),
        "evidence, inputs not committed to": ("not committed", ACCEPTED),
        "evidence, committed to": ("committed", ACCEPTED),
        "… the owner's signature expected": ("the owner's signature expected", ACCEPTED),
        "… dated before the release": ("dated before the release", True),
    }
    return pd.DataFrame(
        {"claim": claim, "service asked": service, "smallest p": p_value(found["p_value"].min())}
        | {name: count_of(found[f].dropna().eq(value)) for name, (f, value) in columns.items()}
        for (claim, service), found in claimed(rows).groupby(level=[0, 1])
    )


def evidence(rows: pd.DataFrame) -> pd.DataFrame:
    found = forged(rows, "changed evidence")
    said = found["value"].astype(str).str.replace(r"[0-9a-f]{16,}", "…", regex=True)
    folder = found[0] + (", " + found[1]).fillna("")
    return pd.DataFrame({"folder": folder, "`verify_evidence`": said}).drop_duplicates()


# --- peers -------------------------------------------------------------------------------


def cpu(rows: pd.DataFrame, method: str) -> pd.Series:
    """CPU seconds of all training that a method takes, pretraining included."""
    found = figures(rows, method, "training", "cpu seconds")
    return found.add(figures(rows, method, "training", "cpu seconds before"), fill_value=0)


def peers(rows: pd.DataFrame) -> pd.DataFrame:
    """Facts × methods."""
    found = {method: dict(_facts(rows, method)) for method in ("twin", *MAIN, *METHODS)}
    return pd.DataFrame(found).rename_axis("").reset_index()


def _facts(rows: pd.DataFrame, method: str) -> Iterator[tuple[str, str]]:
    text, times = partial(spread, of=rows.seed.nunique()), partial(number, decimals=2)
    own = figures(rows, method, "training", "accuracy")
    apart = paired(own, figures(rows, "twin", "training", "accuracy"))
    yield "accuracy minus twin, points", text(apart, points)
    ratio = (cpu(rows, method) / cpu(rows, "twin")).dropna()
    yield "CPU seconds of training, by the twin's", text(ratio, times)
    for batch in ("batch 1", "batch 64"):
        served = figures(rows, "all", "inference", f"{batch}: {method}")
        yield f"inference by the twin's, {batch}", spread(served, times)
    alone = own if method == "twin" else figures(rows, method, "outsider", "without secret")
    reached = best(rows, method, 0) if method in MAIN else alone
    yield "outsider without secret or labels, %", text(reached)
    tail = figures(rows, method, LONG_TAIL, "accuracy", "n = 0")
    yield "… who knows long-tailed class frequencies, %", text(tail)
    yield "… with one labelled sample per class, %", text(best(rows, method, 1))
    for how in ("with a similar secret", "folded by who had it"):
        yield f"… {how}, %", text(figures(rows, method, "outsider", how))
    copies = rows[(rows.method == method) & (rows.attack == "copy")]
    yield "user of a copy is named", count_of(copies[copies.metric == "named"]["value"].eq(True))
    right = copies[copies.metric == "accuracy"].astype({"value": float})
    lost = paired(right.groupby("seed")["value"].mean(), own)
    yield "a copy's accuracy minus the model's, points", text(lost, points)
    for what in ("in the twin", "forged in the twin"):
        p = figures(rows, method, "marks", f"{what}: p_value")
        said = f"{count_of(p <= SIGNIFICANCE)} (p = {p_value(p.min())})" if len(p) else NONE
        yield f"mark {what} accepted", said


def users(rows: pd.DataFrame) -> pd.DataFrame:
    """CPU seconds until so many are served, the first one free; in brackets, twin's trainings."""
    costs = {
        "ours, a key": (DEFAULTS, "issuing", "cpu seconds a key"),
        "ours, a key bundle": (DEFAULTS, "issuing", "cpu seconds a bundle"),
        **{f"{name}, a marked copy": (name, "copy", "cpu seconds") for name in METHODS},
    }
    lines = []
    for name, (method, attack, metric) in costs.items():
        found = rows[(rows.method == method) & (rows.attack == attack) & (rows.metric == metric)]
        one = found.astype({"value": float}).groupby("seed")["value"].mean()
        if len(one):
            each, share = mean(one), mean((one / cpu(rows, "twin")).dropna())
            line = {"": name, "one further user": seconds(each)}
            for n in USERS:
                line[f"{n:,} users"] = f"{seconds(each * (n - 1))} ({seconds(share * (n - 1))})"
            lines.append(line)
    return pd.DataFrame(lines)
