"""The big table: ours beside its peers and the unprotected twin."""

from collections.abc import Callable, Mapping

from keras_encryip.tracing.statistics import SIGNIFICANCE

from ..forgery.ground import ACCEPTED
from . import forgeries, outsiders, removals
from .accuracy import METHODS
from .formats import NONE, minus, of_seeds, over_seeds, p_value, seconds, table, times
from .found import Results, attacks, best
from .statistics import summary

KEPT = 0.05
"""Loss of accuracy that still leaves a useful model."""

USERS = (2, 10, 100, 1000)


def tables(results: Results) -> list[str]:
    if not results.peers.cells and not results.peer_removal.cells:
        return []
    found = [big(results)]
    if any(costs(results).values()):
        found.append(
            "CPU seconds until so many users are served, the first one free; in brackets, in "
            "trainings of the twin:\n\n" + users(results)
        )
    return found


def columns(results: Results) -> list[str]:
    return [*METHODS, *results.methods]


def big(results: Results) -> str:
    makers: dict[str, Callable[[Results, str], str]] = {
        "accuracy minus twin, points": _accuracy,
        "CPU seconds of training, by the twin's": _training,
        "inference by the twin's, batch 1": lambda r, m: _inference(r, m, "batch 1"),
        "inference by the twin's, batch 64": lambda r, m: _inference(r, m, "batch 64"),
        "outsider without secret or labels, %": _outsider,
        "… who knows long-tailed class frequencies, %": _long_tail,
        "… with one labelled sample per class, %": _one_sample,
        "… with a secret made to resemble the owner's, %": _similar,
        "… with a model folded by who had the secret, %": _folded,
        "user of a copy is named": _named,
        "a copy's accuracy minus the model's, points": _copies,
        "mark seen in the unmarked twin": _false,
        "forged mark accepted": _forged,
        f"mark found after tampering that costs at most {100 * KEPT:.0f} points": _survives,
    }
    names = columns(results)
    rows = [[title, *(make(results, name) for name in names)] for title, make in makers.items()]
    return table(["", *(METHODS.get(name, name) for name in names)], rows)


def _count(results: Results) -> int:
    return len(results.peers.seeds)


def _accuracy(results: Results, method: str) -> str:
    peers = results.peers
    twin = peers.figures("twin", "accuracy")
    return (
        "" if method == "twin" else minus(peers.figures(method, "accuracy"), twin, _count(results))
    )


def trainings(results: Results, method: str) -> dict[int, float]:
    """Seed → CPU seconds of all training that it takes, pretraining included."""
    peers = results.peers
    before = peers.figures(method, "cpu seconds before")
    return {s: t + before.get(s, 0.0) for s, t in peers.figures(method, "cpu seconds").items()}


def _training(results: Results, method: str) -> str:
    twin = trainings(results, "twin")
    found = {s: t / twin[s] for s, t in trainings(results, method).items() if s in twin}
    return over_seeds(found, _count(results), times)


def _inference(results: Results, method: str, batch: str) -> str:
    ratio = results.peers.once.get("inference", {}).get(batch, {}).get(method)
    return NONE if ratio is None else times(ratio)


def _outsider(results: Results, method: str) -> str:
    if method in ("twin", *results.methods):
        figure = "accuracy" if method == "twin" else "without key"
        return over_seeds(results.peers.figures(method, figure), _count(results))
    found = {
        seed: max(
            each["best"]
            for name, each in attacks(cell).items()
            if each.get("reachable") and name != "frequencies, long tail"
        )
        for seed, cell in results.ladder.of(f"{_way(method)}, no labels").items()
    }
    return over_seeds(found, len(results.ladder.seeds))


def _long_tail(results: Results, method: str) -> str:
    if method in ("twin", *results.methods):
        return NONE
    key = f"{_way(method)}, no labels"
    found = results.ladder.figures(key, "frequencies, long tail", "best")
    return over_seeds(found, len(results.ladder.seeds))


def _one_sample(results: Results, method: str) -> str:
    if method in ("twin", *results.methods):
        return NONE
    cells = outsiders.cells(results, _way(method), 1)
    return over_seeds(best(cells, True), len(results.ladder.seeds))


def _way(method: str) -> str:
    """The ladder's name of it."""
    return outsiders.DEFAULTS if method == "ours" else method.removeprefix("ours ")


def _similar(results: Results, method: str) -> str:
    return over_seeds(results.peers.figures(method, "with a similar key"), _count(results))


def _folded(results: Results, method: str) -> str:
    return over_seeds(results.peers.figures(method, "folded, no key"), _count(results))


def _named(results: Results, method: str) -> str:
    if method == "ours":
        proofs = removals.proofs(results)
        parts = [
            f"{of_seeds(proofs[name].found.get(removals.UNTOUCHED, {}))} by {name}"
            for name in ("weights", "service")
            if name in proofs
        ]
        return ", ".join(parts) or NONE
    copies = [c for every in results.peers.figures(method, "copies").values() for c in every]
    return f"{sum(c['named'] for c in copies)} of {len(copies)}" if copies else NONE


def _copies(results: Results, method: str) -> str:
    peers = results.peers
    own = peers.figures(method, "accuracy")
    found = {
        seed: summary([copy["accuracy"] for copy in copies]).mean
        for seed, copies in peers.figures(method, "copies").items()
    }
    if method == "ours":
        own = results.removal.figures("model", "accuracy")
        found = results.removal.figures(removals.UNTOUCHED, "accuracy")
        return minus(found, own, len(results.removal.seeds))
    return minus(found, own, _count(results))


def _false(results: Results, method: str) -> str:
    return _detected(results, method, "mark in the twin")


def _forged(results: Results, method: str) -> str:
    if method != "ours":
        return _detected(results, method, "forged in the twin")
    parts = {
        "if the owner's signature is expected": "the owner's signature expected",
        "otherwise": "committed",
    }
    rows = [
        row
        for claim, _, found in forgeries.claim_rows(results.forgery)
        if claim.startswith("another authority")
        for row in found.values()
    ]
    if not rows:
        return NONE
    return ", ".join(
        f"{sum(row.get(field) == ACCEPTED for row in rows)} of {len(rows)} claims {when}"
        for when, field in parts.items()
    )


def _detected(results: Results, method: str, field: str) -> str:
    """In how many seeds, and the smallest p."""
    p = results.peers.figures(method, field, "p_value")
    if not p:
        return NONE
    found = {seed: value <= SIGNIFICANCE for seed, value in p.items()}
    return f"{of_seeds(found)} (p = {p_value(min(p.values()))})"


def survived(proof: removals.Proof) -> tuple[int, int]:
    """(mark found, rungs): of rungs and seeds where accuracy stays within `KEPT`."""
    flags = [
        proof.found[rung][seed]
        for rung in proof.accuracy
        if rung != removals.UNTOUCHED
        for seed, cost in proof.cost(rung).items()
        if cost <= KEPT + 1e-9 and seed in proof.found.get(rung, {})
    ]
    return sum(flags), len(flags)


def _survives(results: Results, method: str) -> str:
    proofs = removals.proofs(results)
    names = ("weights", "service", "ownership") if method == "ours" else (method,)
    parts = []
    for name in (name for name in names if name in proofs):
        found, of = survived(proofs[name])
        parts.append(f"{found} of {of}" + (f" by {name}" if method == "ours" else ""))
    return ", ".join(parts) or NONE


# --- users -------------------------------------------------------------------------------


def costs(results: Results) -> dict[str, dict[int, float]]:
    """Row → seed → CPU seconds of one further user."""
    peers = results.peers
    key, bundle = (peers.figures("ours", f"cpu seconds a {what}") for what in ("key", "bundle"))
    found: dict[str, dict[int, float]] = {"ours, key alone": key, "ours, key bundle": bundle}
    for method in results.methods:
        found[f"{method}, marked copy"] = {
            seed: summary([copy["cpu seconds"] for copy in copies]).mean
            for seed, copies in peers.figures(method, "copies").items()
        }
    return found


def users(results: Results) -> str:
    twin = trainings(results, "twin")
    rows = []
    for name, by_seed in costs(results).items():
        if not by_seed:
            continue
        one = summary(by_seed.values()).mean
        shares: Mapping[int, float] = {s: c / twin[s] for s, c in by_seed.items() if s in twin}
        share = summary(shares.values()).mean if shares else None
        rows.append([name, seconds(one), *(_so_many(one * (n - 1), share, n - 1) for n in USERS)])
    return table(["", "one further user", *(f"{n:,} users" for n in USERS)], rows)


def _so_many(cost: float, share: float | None, further: int) -> str:
    return seconds(cost) + ("" if share is None else f" ({seconds(share * further)})")
