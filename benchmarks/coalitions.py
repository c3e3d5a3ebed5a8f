"""What coalitions of traitors can do against black-box tracing, and what innocents risk.

    python benchmarks/coalitions.py [--json FILE] [--simulations N] [--innocent N] [--runs N]

No network is trained. The model answers each of T trace inputs with its trace label, and
the pirate service holds the decode tables of c traitors. What a user's table says at the
trace labels is uniform over the K classes and independent of all other users' (that is
what the KEM gives; the script compares it with real keys). A label on which all members
agree looks ordinary to them and is answered truly. Where they differ they know that the
label traces, and

    majority        answer the class that most members read, ties at random
    minority        the class that fewest read
    random member   what a member, drawn for each input, reads
    all-disagree    a class that nobody reads
    strip           nothing
    strip + noise   a random class
    strip + class   the class of the best ordinary label: random, and the same every time

The last two are the same while every input is asked once. A lone traitor sees no
difference between labels; here they recognise a share of the trace labels somehow (such
labels never come up on natural inputs) and answer at random there.

The owner decides as the library does: exact binomial tails over the labels answered,
times the number of users, at most `SIGNIFICANCE`. Members' hits are counted on the first
T of 65,536 labels, so that one simulation serves every T; T is tried in steps of 2^(1/4).
Then come: a score for *pairs* of users, which the library does not have; how often
innocents are accused when traitors are not among the users tested, in simulation and by
`Tracer.table` on a real ledger; and the comparison with real keys.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binom, binomtest, chisquare

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.tracer import Tracer
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.tracing.statistics import SIGNIFICANCE, least_hits

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 20240917
CLASSES = (10, 100)
COALITIONS = tuple(range(2, 9))
SHARES = (0.0, 0.5, 0.9, 1.0)
USERS = (1_000, 100_000, 1_000_000)
LABELS = sorted({round(2 ** (k / 4)) for k in range(16, 65)})
"""The T that are tried: 16 … 65,536."""
SHOWN = (64, 128, 256)
WANTED = 0.95
BATCH = 20
"""Coalitions that are simulated at a time, to bound memory."""

LEVELS = (0.1, 0.01, 0.001, SIGNIFICANCE)
INNOCENT = {"users": 1_000, "labels": 64, "classes": 10}
PAIR_USERS = 1_000
PAIR_RUNS = 10
PAIR_LABELS = (64, 128, 256, 512)

Strategy = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
Row = dict[str, Any]


# --- the owner ---------------------------------------------------------------------------


def least(n: np.ndarray, classes: int, tests: float, level: float = SIGNIFICANCE) -> np.ndarray:
    """`least_hits` for arrays of any n, whose exact integers take minutes at n = 65,536."""
    values, inverse = np.unique(n, return_inverse=True)
    wanted = level / tests * (1 + 1e-9)  # 10⁻¹² is exact for the library
    hits = binom.isf(wanted, values, 1 / classes) + 1
    hits -= binom.sf(hits - 2, values, 1 / classes) <= wanted  # isf can be one too high,
    hits += binom.sf(hits - 1, values, 1 / classes) > wanted  # or too low, by rounding
    return np.clip(hits, 1, None).astype(np.int64)[inverse].reshape(np.shape(n))


def check_least() -> int:
    """The same as the library's exact integers wherever these are quick."""
    checked = 0
    for classes in CLASSES:
        for users in USERS:
            ns = np.array([0, 1, 2, 5, 6, 12, 13, *range(16, 129, 7), 256, 512, 1024])
            exact = [min(least_hits(int(n), classes, users), 10**9) for n in ns]
            assert np.array_equal(np.minimum(least(ns, classes, users), ns + 1), exact)
            checked += len(ns)
    return checked


# --- the pirates -------------------------------------------------------------------------


def _pick(answers: np.ndarray, preference: np.ndarray) -> np.ndarray:
    best = preference.argmax(1)
    return np.take_along_axis(answers, best[:, None], 1)[:, 0]


def _held(answers: np.ndarray) -> np.ndarray:
    """How many members read what each of them reads: float32, shape of `answers`."""
    counts = np.zeros(answers.shape, np.float32)
    for i in range(answers.shape[1]):
        counts += answers == answers[:, i : i + 1]
    return counts


def majority(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    return _pick(answers, _held(answers) + random.random(answers.shape, np.float32))


def minority(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    return _pick(answers, random.random(answers.shape, np.float32) - _held(answers))


def random_member(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    return _pick(answers, random.random(answers.shape, np.float32))


def all_disagree(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """Uniform over the classes that nobody reads; over all, if all are read by somebody."""
    rows = np.moveaxis(answers, 1, -1).reshape(-1, answers.shape[1])
    said = random.integers(classes, size=len(rows), dtype=np.int16)
    again = np.arange(len(rows))
    if answers.shape[1] >= classes:
        distinct = (np.diff(np.sort(rows, 1), axis=1) > 0).sum(1) + 1
        again = np.flatnonzero(distinct < classes)
    while again.size:
        again = again[(rows[again] == said[again, None]).any(1)]
        said[again] = random.integers(classes, size=again.size, dtype=np.int16)
    return said.reshape(answers.shape[0], -1)


def noise(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(classes, size=answers[:, 0].shape, dtype=np.int16)


def nothing(answers: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    return np.full(answers[:, 0].shape, -1, np.int16)


STRATEGIES: dict[str, Strategy] = {
    "majority": majority,
    "minority": minority,
    "random member": random_member,
    "all-disagree": all_disagree,
    "strip": nothing,
    "strip + noise": noise,
    "strip + class": noise,
}


def serve(
    strategy: Strategy, answers: np.ndarray, classes: int, random: np.random.Generator
) -> np.ndarray:
    """What the service says: int16 `[runs, T]` from the members' `[runs, c, T]`; -1 is nothing."""
    agreed = (answers == answers[:, :1]).all(1)
    return np.where(agreed, answers[:, 0], strategy(answers, classes, random))


def draw(runs: int, members: int, labels: int, classes: int, random: np.random.Generator) -> Any:
    return random.integers(classes, size=(runs, members, labels), dtype=np.uint8).astype(np.int16)


# --- detection ---------------------------------------------------------------------------


def _up_to(flags: np.ndarray, labels: list[int]) -> np.ndarray:
    """Sums over the first T entries of the last axis, for each T."""
    starts = [0, *labels[:-1]]
    parts = np.add.reduceat(flags[..., : labels[-1]], starts, axis=-1, dtype=np.int32)
    return parts.cumsum(-1)


def count(said: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members' hits `[runs, c, T]` and labels answered `[runs, T]`, for each T in `LABELS`."""
    return _up_to(said[:, None] == answers, LABELS), _up_to(said >= 0, LABELS)


def judge(hits: np.ndarray, answered: np.ndarray, classes: int) -> Row:
    """For each number of users: the smallest T, and what is found at some T."""
    row: Row = {}
    for users in USERS:
        found = (hits >= least(answered, classes, users)[:, None]).sum(1)
        share = (found > 0).mean(0)
        enough = np.flatnonzero(share >= WANTED)
        row[str(users)] = {
            "smallest_T": LABELS[enough[0]] if enough.size else None,
            "at": {
                str(labels): {
                    "share": float(share[i]),
                    "mean_found": float(found[:, i].mean()),
                    "mean_best_hits": float(hits[:, :, i].max(1).mean()),
                }
                for i, labels in enumerate(LABELS)
                if labels in SHOWN
            },
            "share_at_65536": float(share[-1]),
        }
    return row


def coalitions(simulations: int) -> list[Row]:
    """Every strategy meets the same coalitions."""
    rows = []
    cases = [(classes, c) for classes in CLASSES for c in COALITIONS]
    for classes, c in track(cases, description="coalitions"):
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in STRATEGIES}
        for batch in range(-(-simulations // BATCH)):
            random = np.random.default_rng((SEED, 1, classes, c, batch))
            runs = min(BATCH, simulations - batch * BATCH)
            answers = draw(runs, c, LABELS[-1], classes, random)
            for name, strategy in STRATEGIES.items():
                parts[name].append(count(serve(strategy, answers, classes, random), answers))
        for name, found in parts.items():
            hits, answered = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            users = judge(hits, answered, classes)
            rows.append({"classes": classes, "traitors": c, "strategy": name, "users": users})
    return rows


def lone_traitors(simulations: int) -> list[Row]:
    rows = []
    for classes in CLASSES:
        for share in SHARES:
            random = np.random.default_rng((SEED, 2, classes, round(100 * share)))
            answers = draw(simulations, 1, LABELS[-1], classes, random)
            places = np.arange(LABELS[-1])
            known = np.floor((places + 1) * share) > np.floor(places * share)
            said = np.where(known, noise(answers, classes, random), answers[:, 0])
            users = judge(*count(said, answers), classes)
            rows.append({"classes": classes, "recognised": share, "users": users})
    return rows


# --- pairs, not in the library -----------------------------------------------------------


def pairs(simulations: int) -> list[Row]:
    """Score pairs of users by the labels on which the two agree.

    Two traitors who answer what neither reads must still answer truly there. With it:
    whom the same score accuses among 1,000 users, of whom the first two are the traitors.
    """
    rows = []
    for classes in CLASSES:
        for name in ("all-disagree", "random member"):
            row: Row = {"classes": classes, "strategy": name, "users": {}}
            agreed, right, both = [], [], []
            for batch in range(-(-simulations // BATCH)):
                random = np.random.default_rng((SEED, 3, classes, batch))
                answers = draw(BATCH, 2, LABELS[-1], classes, random)
                said = serve(STRATEGIES[name], answers, classes, random)
                same = answers[:, 0] == answers[:, 1]
                agreed.append(_up_to(same, LABELS))
                right.append(_up_to(same & (said == answers[:, 0]), LABELS))
                avoided = (said[:, None] != answers).all(1)
                both.append(_up_to(np.where(same, said == answers[:, 0], avoided), LABELS))
            m, x, fits = (np.concatenate(arrays)[:simulations] for arrays in (agreed, right, both))
            chance = (1 / classes) ** 2 + (1 - 1 / classes) * (1 - 2 / classes)
            for users in USERS:
                tests = math.comb(users, 2)
                found = x >= least(m, classes, tests)
                enough = np.flatnonzero(found.mean(0) >= WANTED)
                consistent = binom.sf(fits - 1, np.array(LABELS), chance) * tests <= SIGNIFICANCE
                also = np.flatnonzero(consistent.mean(0) >= WANTED)
                row["users"][str(users)] = {
                    "smallest_T": LABELS[enough[0]] if enough.size else None,
                    "smallest_T_all_labels": LABELS[also[0]] if also.size else None,
                    "share_at": {
                        str(labels): float(found[:, LABELS.index(labels)].mean())
                        for labels in SHOWN
                    },
                }
            row["accused_among_1000"] = accused_pairs(classes, STRATEGIES[name])
            rows.append(row)
    return rows


def accused_pairs(classes: int, strategy: Strategy) -> Row:
    """Pairs at a corrected p-value of at most `SIGNIFICANCE`: by how many of the two leaked."""
    totals = {labels: np.zeros(3, int) for labels in PAIR_LABELS}
    upper = np.triu_indices(PAIR_USERS, 1)
    for run in range(PAIR_RUNS):
        random = np.random.default_rng((SEED, 4, classes, run))
        answers = draw(1, PAIR_USERS, PAIR_LABELS[-1], classes, random)
        said = serve(strategy, answers[:, :2], classes, random)[0]
        m, x = np.zeros((2, PAIR_USERS, PAIR_USERS), np.uint16)
        for t in range(PAIR_LABELS[-1]):
            own = answers[0, :, t]
            m += own[:, None] == own
            right = np.flatnonzero(own == said[t])
            x[np.ix_(right, right)] += 1
            if t + 1 in totals:
                need = least(np.arange(t + 2), classes, math.comb(PAIR_USERS, 2))
                guilty = (x >= need[m])[upper]
                leaked = (upper[0] < 2).astype(int) + (upper[1] < 2)
                totals[t + 1] += np.bincount(leaked[guilty], minlength=3)
    return {
        str(labels): {
            "both": total[2] / PAIR_RUNS,
            "one": total[1] / PAIR_RUNS,
            "none": total[0] / PAIR_RUNS,
        }
        for labels, total in totals.items()
    }


# --- innocents ---------------------------------------------------------------------------


def outsiders(
    name: str, runs: int, labels: int, classes: int, random: np.random.Generator
) -> np.ndarray:
    """Answers that owe nothing to the users tested: int16 `[runs, T]`."""
    if name == "one class":
        return np.repeat(random.integers(classes, size=(runs, 1), dtype=np.int16), labels, 1)
    if name == "half one class":
        said = random.integers(classes, size=(runs, labels), dtype=np.int16)
        return np.where(random.random((runs, labels)) < 0.5, said[:, :1], said)
    members = int(random.choice(COALITIONS))
    answers = draw(runs, members, labels, classes, random)
    return serve(STRATEGIES[name], answers, classes, random)


OUTSIDERS = (*STRATEGIES, "one class", "half one class")


def interval(hits: int, runs: int) -> list[float]:
    found = binomtest(hits, runs).proportion_ci(method="exact")
    return [float(found.low), float(found.high)]


def innocents(simulations: int) -> list[Row]:
    """How many reports name anybody, where everybody is innocent."""
    users, labels, classes = (INNOCENT[name] for name in ("users", "labels", "classes"))
    step = 50
    reports = {name: np.zeros(len(LEVELS), int) for name in OUTSIDERS}
    for name in track(OUTSIDERS, description="innocents"):
        random = np.random.default_rng((SEED, 5, OUTSIDERS.index(name)))
        for start in range(0, simulations, step):
            runs = min(step, simulations - start)
            said = outsiders(name, runs, labels, classes, random)
            answers = random.integers(classes, size=(runs, users, labels), dtype=np.uint8)
            same = answers == np.where(said < 0, 255, said).astype(np.uint8)[:, None]
            best = np.bitwise_count(np.packbits(same, -1).view(np.uint64)).sum(-1).max(1)
            n = (said >= 0).sum(1)
            for i, level in enumerate(LEVELS):
                reports[name][i] += int((best >= least(n, classes, users, level)).sum())
    rows = []
    for name in (*OUTSIDERS, "all"):
        hits = sum(reports.values()) if name == "all" else reports[name]
        runs = simulations * (len(OUTSIDERS) if name == "all" else 1)
        row: Row = {"answers": name, "simulations": runs, "levels": {}}
        for level, found in zip(LEVELS, hits.tolist(), strict=True):
            need = int(least(np.array([labels]), classes, users, level)[0])
            one = binom.sf(need - 1, labels, 1 / classes)
            row["levels"][f"{level:g}"] = {
                "reports": found,
                "interval_95": interval(found, runs),
                "expected_if_all_answered": float(-np.expm1(users * np.log1p(-one))),
                "contradicts_bound": interval(found, runs)[0] > level,
            }
        rows.append(row)
    return rows


# --- real keys ---------------------------------------------------------------------------


def real_keys(users: int = 1_000, labels: int = 64, drawn: int = 1_000) -> list[Row]:
    """What real users' tables say at trace labels, against the uniform and independent model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
        with authority:
            for classes in CLASSES:
                assignment = LabelAssignment.draw(classes, 640 // classes, labels)
                names = [str(i) for i in range(classes)]
                metadata = ModelMetadata(model=f"{classes}", class_names=names)
                codebook = authority.model_store.add_model(metadata, assignment)
                tracing = authority.model_store.tracing_headers(codebook)
                keys = [authority.keys.master.issue() for _ in range(users)]
                answers = codebook.predicted_answers(keys, assignment, tracing).astype(np.int16)
                for key, own in list(zip(keys, answers, strict=True))[:5]:
                    assert np.array_equal(codebook.decode_table(key)[assignment.trace], own)
                rows.append(compare(answers, classes, drawn))
    return rows


def compare(answers: np.ndarray, classes: int, drawn: int) -> Row:
    random = np.random.default_rng((SEED, 6, classes))
    users, labels = answers.shape
    spread = np.bincount(answers.ravel(), minlength=classes)
    each = np.stack([np.bincount(column, minlength=classes) for column in answers.T])
    agreeing = int((answers[0::2] == answers[1::2]).sum())
    row: Row = {
        "classes": classes,
        "users": users,
        "labels": labels,
        "p_uniform": float(chisquare(spread).pvalue),
        "p_uniform_each_label_least_of_T": float(
            min(1.0, labels * min(chisquare(column).pvalue for column in each))
        ),
        "agreements_of_pairs": agreeing / (users // 2 * labels),
        "p_agreements": float(binomtest(agreeing, users // 2 * labels, 1 / classes).pvalue),
        "members_hits": [],
    }
    for name, strategy in STRATEGIES.items():
        for c in (2, 4, 8):
            chosen = np.stack([random.permutation(users)[:c] for _ in range(drawn)])
            both = []
            for own in (answers[chosen], draw(drawn, c, labels, classes, random)):
                said = serve(strategy, own, classes, random)
                both.append((said[:, None] == own).sum(-1).max(1))
            gap = both[0].mean() - both[1].mean()
            error = math.sqrt(sum(hits.var() for hits in both) / drawn)
            row["members_hits"].append(
                {
                    "strategy": name,
                    "traitors": c,
                    "best_hits_real": float(both[0].mean()),
                    "best_hits_model": float(both[1].mean()),
                    "standard_errors_apart": float(gap / error) if error else 0.0,
                }
            )
    return row


def real_reports(runs: int) -> Row:
    """`Tracer.table` over enrolled innocents, on tables of coalitions not enrolled."""
    import keras

    import keras_encryip as ke

    users, labels, classes = (INNOCENT[name] for name in ("users", "labels", "classes"))
    keras.utils.set_random_seed(SEED)
    classifier = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(classes, activation="softmax")]
    )
    random = np.random.default_rng((SEED, 7))
    chances = []
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
        with authority:
            model = ke.protect(classifier, authority, name="m", homophones=64, trace_labels=labels)
            authority.enroll(f"innocent {i}" for i in range(users))
            store, tracer = authority.model_store, Tracer(authority)
            record = store.model_named("m")
            assignment = record.assignment
            (codebook,) = store.codebooks_of(record.model_id)
            tracing = store.tracing_headers(codebook)
            table = assignment.classes.astype(np.int64)
            for run in track(range(runs), description="tables"):
                name = OUTSIDERS[run % len(OUTSIDERS)]
                if name in STRATEGIES:
                    members = int(random.choice(COALITIONS))
                    keys = [authority.keys.master.issue() for _ in range(members)]
                    own = codebook.predicted_answers(keys, assignment, tracing)[None]
                    said = serve(STRATEGIES[name], own, classes, random)[0]
                else:
                    said = outsiders(name, 1, labels, classes, random)[0]
                table[assignment.trace] = said
                report = tracer.table(table, model=model if run % 2 else "m")
                assert report.tested == users
                assert report.evidence["this is the model"] == "yes"
                chances.append(report.p_value)
            authority.enroll(["traitor"])
            user = authority.users()[-1]
            z = authority.user_store.zs([user.key_id])[user.key_id]
            key = authority.keys.master.user_key(z)
            control = tracer.table(codebook.decode_table(key), model="m")
    assert [suspect.subject for suspect in control.guilty] == ["traitor"]
    return {
        "runs": runs,
        "users": users,
        "levels": {
            f"{level:g}": {
                "reports": (found := sum(p <= level for p in chances)),
                "interval_95": interval(found, runs),
                "contradicts_bound": interval(found, runs)[0] > level,
            }
            for level in LEVELS
        },
        "least_p_value": min(chances),
        "control": "an enrolled traitor's own table names the traitor, and nobody else",
    }


# --- output ------------------------------------------------------------------------------


def machine() -> str:
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [li for li in cpuinfo.read_text().splitlines() if li.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "keras"))
    return f"{processor}, one thread, Python {platform.python_version()}, {libraries}"


def _new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _labels(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def show_coalitions(console: Console, results: dict[str, Any]) -> None:
    rows = results["coalitions"]
    for classes in CLASSES:
        own = [row for row in rows if row["classes"] == classes]
        for users in map(str, USERS):
            table = _new_table(
                f"K = {classes}, {int(users):,} users: smallest T that finds a traitor in "
                f"{WANTED:.0%} of runs (none: not up to {LABELS[-1]:,})",
                "strategy",
                *(f"c = {c}" for c in COALITIONS),
            )
            for name in STRATEGIES:
                cells = [r["users"][users] for r in own if r["strategy"] == name]
                table.add_row(name, *(_labels(cell["smallest_T"]) for cell in cells))
            console.print(table)
        for labels in map(str, SHOWN):
            table = _new_table(
                f"K = {classes}, 100,000 users, T = {labels}: share of runs with a traitor found "
                "/ traitors found on average",
                "strategy",
                *(f"c = {c}" for c in COALITIONS),
            )
            for name in STRATEGIES:
                cells = [r["users"]["100000"]["at"][labels] for r in own if r["strategy"] == name]
                table.add_row(name, *(f"{c['share']:.2f} / {c['mean_found']:.2f}" for c in cells))
            console.print(table)


def show_lone(console: Console, results: dict[str, Any]) -> None:
    table = _new_table(
        "A lone traitor who recognises a share of the trace labels: smallest T; share found",
        "K, share recognised",
        *(f"{users:,} users" for users in USERS),
        *(f"T = {labels}, 100,000" for labels in SHOWN),
    )
    for row in results["lone"]:
        found = row["users"]["100000"]["at"]
        table.add_row(
            f"{row['classes']}, {row['recognised']:.0%}",
            *(_labels(row["users"][str(users)]["smallest_T"]) for users in USERS),
            *(f"{found[str(labels)]['share']:.2f}" for labels in SHOWN),
        )
    console.print(table)


def show_pairs(console: Console, results: dict[str, Any]) -> None:
    table = _new_table(
        "Two traitors, scored as a pair (not in the library): smallest T by the labels on which "
        "the two agree; by all labels",
        "K, strategy",
        *(f"{users:,} users" for users in USERS),
    )
    for row in results["pairs"]:
        table.add_row(
            f"{row['classes']}, {row['strategy']}",
            *(
                f"{_labels(row['users'][str(users)]['smallest_T'])}; "
                f"{_labels(row['users'][str(users)]['smallest_T_all_labels'])}"
                for users in USERS
            ),
        )
    console.print(table)
    table = _new_table(
        f"Pairs that this score accuses among {PAIR_USERS:,} users, mean of {PAIR_RUNS} runs: both "
        "leaked / one did / none",
        "K, strategy",
        *(f"T = {labels}" for labels in PAIR_LABELS),
    )
    for row in results["pairs"]:
        cells = [row["accused_among_1000"][str(labels)] for labels in PAIR_LABELS]
        table.add_row(
            f"{row['classes']}, {row['strategy']}",
            *(f"{c['both']:.2f} / {c['one']:.1f} / {c['none']:.2f}" for c in cells),
        )
    console.print(table)


def show_innocents(console: Console, results: dict[str, Any]) -> None:
    users, labels, classes = (INNOCENT[name] for name in ("users", "labels", "classes"))
    table = _new_table(
        f"Reports that name an innocent ({users:,} users, T = {labels}, K = {classes}): "
        "number, 95 % interval of the rate",
        "answers",
        "runs",
        *(f"p ≤ {level:g}" for level in LEVELS),
    )
    rows = [*results["innocents"], {**results["real_reports"], "answers": "real `Tracer.table`"}]
    for row in rows:
        cells = []
        for cell in row["levels"].values():
            low, high = cell["interval_95"]
            mark = " !" if cell["contradicts_bound"] else ""
            cells.append(f"{cell['reports']:,}: {low:.2g} … {high:.2g}{mark}")
        table.add_row(row["answers"], f"{row.get('simulations', row.get('runs')):,}", *cells)
    expected = [c["expected_if_all_answered"] for c in results["innocents"][0]["levels"].values()]
    table.add_row("exact rate, all answered", "", *(f"{rate:.2g}" for rate in expected))
    console.print(table)


def show_real(console: Console, results: dict[str, Any]) -> None:
    table = _new_table(
        "Real keys against the model",
        "K",
        "users",
        "p: uniform",
        "p: each label",
        "pairs agree",
        "p of that",
        "best hits, real against model: largest gap",
    )
    for row in results["real_keys"]:
        gap = max(row["members_hits"], key=lambda r: abs(r["standard_errors_apart"]))
        table.add_row(
            f"{row['classes']}",
            f"{row['users']:,}",
            *(f"{row[name]:.2f}" for name in ("p_uniform", "p_uniform_each_label_least_of_T")),
            f"{row['agreements_of_pairs']:.4f}",
            f"{row['p_agreements']:.2f}",
            f"{gap['standard_errors_apart']:+.1f} standard errors of {len(row['members_hits'])}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "coalitions.json")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument(
        "--innocent", type=int, default=10_000, help="runs for each kind of answers"
    )
    parser.add_argument("--runs", type=int, default=200, help="of the real `Tracer.table`")
    args = parser.parse_args()
    console = Console()
    console.width = max(console.width, 130)
    results: dict[str, Any] = {
        "machine": machine(),
        "seed": SEED,
        "simulations": args.simulations,
        "significance": SIGNIFICANCE,
        "thresholds_checked_with_the_library": check_least(),
        "seconds": {},
    }
    for name, call in (
        ("real_reports", lambda: real_reports(args.runs)),
        ("real_keys", real_keys),
        ("coalitions", lambda: coalitions(args.simulations)),
        ("lone", lambda: lone_traitors(args.simulations)),
        ("pairs", lambda: pairs(args.simulations)),
        ("innocents", lambda: innocents(args.innocent)),
    ):
        start = time.process_time()
        results[name] = call()
        results["seconds"][name] = time.process_time() - start
    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"{results['machine']}; seed {SEED}, {args.simulations} simulations a case")
    show_coalitions(console, results)
    show_lone(console, results)
    show_pairs(console, results)
    show_innocents(console, results)
    show_real(console, results)
    spent = ", ".join(f"{name} {s:.0f}" for name, s in results["seconds"].items())
    console.print(f"CPU seconds: {spent}")


if __name__ == "__main__":
    main()
