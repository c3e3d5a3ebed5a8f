"""What the results say against the protection, as sentences made from them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from . import comparison, forged, outsiders, removals
from .formats import count, listed, percent, points, with_interval
from .found import Results, attacks, best, best_names, from_scratch
from .removals import Proof
from .statistics import paired, summary
from .verdicts import TINY, Finding, Verdict, at_least, at_most

ATTACK_AIM = 0.05
"""The best attack's lead over the best without a model: at most."""

ACCURACY_AIM = -0.005
"""Decoded accuracy minus the twin's: at least."""

LOSSES = (0.02, comparison.KEPT)
"""What a thief may pay in accuracy."""

AIMED = (1, 5)
"""Labelled samples per class for which the aim holds."""


def findings(every: Sequence[Results]) -> list[Finding]:
    """Most severe first: by verdict, then attacks, accuracy, removal, forgery."""
    found = [finding for part in PARTS for results in every for finding in part(results)]
    order = list(Verdict)
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def _mean(values: dict[int, float]) -> str:
    return percent(summary(values.values()).mean)


# --- outsiders ---------------------------------------------------------------------------


def few_labels(results: Results) -> Iterator[Finding]:
    for n in AIMED:
        cells = outsiders.cells(results, outsiders.DEFAULTS, n)
        without = outsiders.cells(results, "no model", n)
        reached, alone, scratch = best(cells, True), best(without, False), from_scratch(without)
        lead, above = paired(reached, alone), paired(reached, scratch)
        if lead is None:
            continue
        text = (
            f"**Few labels, {results.data}, {count(n, 'sample')} per class (P2).** The best "
            f"attack on the defaults ({listed(best_names(cells, True))}) names "
            f"{_mean(reached)} % of the test inputs, the best that needs no model "
            f"({listed(best_names(without, False))}) {_mean(alone)} % with the same samples: "
            f"{with_interval(lead)}; the aim is at most {points(ATTACK_AIM)}."
        )
        if above is not None:
            text += (
                f" An ordinary classifier from scratch gets {_mean(scratch)} %: the attack is "
                f"{with_interval(above)} above it."
            )
        yield Finding(at_most(lead, ATTACK_AIM), text)


def trade_off(results: Results) -> Iterator[Finding]:
    """Whether any way meets both aims, by means."""
    ladder = results.ladder
    twin = ladder.figures("twin", "accuracy")
    tried, good = 0, []
    for way in results.ways:
        loss = paired(ladder.figures(f"{way}, model", "accuracy"), twin)
        leads = [
            paired(
                best(outsiders.cells(results, way, n), True),
                best(outsiders.cells(results, "no model", n), False),
            )
            for n in AIMED
        ]
        if loss is None or None in leads:
            continue
        tried += 1
        kept = loss.mean >= ACCURACY_AIM - TINY
        if kept and all(lead.mean <= ATTACK_AIM + TINY for lead in leads if lead):
            good.append(way)
    if not tried:
        return
    start = f"**Trade-off, {results.data}.** Of {count(tried, 'way')} to protect, "
    if good:
        text = f"{len(good)} on average meet both the aim for attacks and that for accuracy: "
        yield Finding(Verdict.OPEN, f"{start}{text}{listed(good, len(good))}.")
    else:
        text = "none meets, even on average, both the aim for attacks and that for accuracy."
        yield Finding(Verdict.MISSED, start + text)


def no_labels(results: Results) -> Iterator[Finding]:
    cells = results.ladder.of(f"{outsiders.DEFAULTS}, no labels")
    tail = results.ladder.figures(
        f"{outsiders.DEFAULTS}, no labels", "frequencies, long tail", "best"
    )
    even = {
        seed: max(
            each["best"]
            for name, each in attacks(cell, True).items()
            if each.get("reachable") and name != "frequencies, long tail"
        )
        for seed, cell in cells.items()
    }
    one = results.ladder.figures(f"{outsiders.DEFAULTS}, no labels", "one class for all", "best")
    if not tail or not even or not one:
        return
    yield Finding(
        Verdict.LIMIT,
        f"**No labels, {results.data} (P1).** An outsider who knows the class frequencies of a "
        f"long-tailed stream of inputs names {_mean(tail)} % of the test inputs without a label. "
        f"The best other attack without labels gets {_mean(even)} %, calling all inputs by the "
        f"most frequent class {_mean(one)} %.",
    )


# --- accuracy ----------------------------------------------------------------------------


def decoded(results: Results) -> Iterator[Finding]:
    """From the ladder's models, which are the ones attacked; else from the comparison's."""
    for way, cell in (("defaults", "ours"), ("from scratch", "ours from scratch")):
        sources = ((results.ladder, f"{way}, model"), (results.peers, cell))
        for suite, key in sources:
            found = suite.figures(key, "accuracy")
            apart = paired(found, suite.figures("twin", "accuracy"))
            if apart is None:
                continue
            yield Finding(
                at_least(apart, ACCURACY_AIM),
                f"**Accuracy, {results.data}, {way} (P3).** Decoded, {_mean(found)} %: "
                f"{with_interval(apart)} against the unprotected twin; the aim is at least "
                f"{points(ACCURACY_AIM)}.",
            )
            break


# --- removal -----------------------------------------------------------------------------


def removal(results: Results) -> Iterator[Finding]:
    """Both of our tracers together first, then each proof."""
    proofs = removals.proofs(results)
    if "weights" not in proofs:
        return
    weights, service = proofs["weights"], proofs["service"]
    both = Proof(
        "both tracers together",
        weights.accuracy,
        {},
        {
            rung: {s: ok or service.found[rung].get(s, False) for s, ok in by_seed.items()}
            for rung, by_seed in weights.found.items()
        },
    )
    claims = {"weights": "P7", "service": "P8"}
    for proof in (both, weights, service, proofs["ownership"]):
        claim = claims.get(proof.name.removeprefix("ours, "))
        title = f"**Removal, {results.data}, {proof.name}{f' ({claim})' if claim else ''}.** "
        yield from _defeats(title, proof)
    yield from _innocents(results)


def _defeats(title: str, proof: Proof) -> Iterator[Finding]:
    lost: dict[float, list[str]] = {loss: [] for loss in LOSSES}
    tried = 0
    for rung in proof.accuracy:
        costs = proof.cost(rung)
        found = {s: ok for s, ok in proof.found.get(rung, {}).items() if s in costs}
        tried += sum(cost <= LOSSES[-1] + TINY for s, cost in costs.items() if s in found)
        for below, loss in pairwise((-1.0, *LOSSES)):
            gone = [s for s, ok in found.items() if not ok and below < costs[s] - TINY <= loss]
            if gone:
                cost = points(-summary([costs[s] for s in gone]).mean)
                lost[loss].append(
                    f"`{rung}` ({cost} points; {len(gone)} of {count(len(found), 'seed')})"
                )
    if not tried:
        return
    texts = [
        f"for at most {100 * loss:.0f} points of accuracy: {', '.join(rungs)}"
        for loss, rungs in lost.items()
        if rungs
    ]
    if texts:
        yield Finding(Verdict.MISSED, f"{title}Defeated {'; '.join(texts)}.")
    else:
        yield Finding(
            Verdict.MET,
            f"{title}Not defeated in any of {count(tried, 'run')} that cost at most "
            f"{100 * LOSSES[-1]:.0f} points of accuracy.",
        )


def _innocents(results: Results) -> Iterator[Finding]:
    suite = results.removal
    accused = [
        n
        for rung in results.rungs
        for part in ("weights", "service")
        for n in suite.figures(rung, part, "innocents guilty").values()
    ]
    if accused:
        yield Finding(
            Verdict.MISSED if sum(accused) else Verdict.MET,
            f"**False accusations, {results.data}.** {count(len(accused), 'trace')} of tampered "
            f"copies called {count(sum(accused), 'innocent user')} guilty.",
        )


PARTS = (
    few_labels,
    trade_off,
    decoded,
    removal,
    forged.keys,
    forged.claims,
    forged.evidence,
    no_labels,
)
"""In the order of severity, among findings of one verdict."""
