"""What an outsider without a key gets from a protected model's weights.

`unlabelled_attacks` has no label at all; `ladder` has n labelled samples per class, and the
owner's training inputs without labels. Every attack reports its best setting *on the test set*,
which favours the outsider, and how many settings were tried.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data import Data, labelled
from . import probing, reading, training, unlabelled
from .outsider import NEIGHBOURS, UNLABELLED, Outsider, raw_inputs

__all__ = [
    "UNLABELLED",
    "Outsider",
    "ladder",
    "probe_others",
    "unlabelled_attacks",
    "with_model",
    "without_model",
]

Results = dict[str, dict[str, Any]]
"""`{attack: {best, setting, tried, family, needs_model}}`."""

STEPS = 300
RATIO = 100.0
PROBES = {
    "linear probes": probing.linear_probes,
    "nearest means": probing.nearest_means,
    "named clusters": probing.named_clusters,
}


def ladder(
    outsider: Outsider, data: Data, n: int, seed: int, augment: bool, steps: int = STEPS
) -> Results:
    """Every attack with n labelled samples per class.

    Args:
        outsider: made from the same data.
        n: samples per class; the training split must have as many.
        seed: of the choice of the samples, and of training.
        augment: as the owner's training does.
        steps: of every training.
    """
    found = with_model(outsider, data, n, seed, augment, steps)
    return found | without_model(data, n, seed, augment, steps)


def with_model(
    outsider: Outsider, data: Data, n: int, seed: int, augment: bool, steps: int = STEPS
) -> Results:
    """The attacks of `ladder` that use the model."""
    chosen = labelled(data, n, seed)
    x, y, y_test = data.x[chosen], data.y[chosen], data.y_test
    known = outsider.layers(x)
    labels, answers = reading.labels_of(outsider), outsider.answers.test
    found: Results = {}
    mass = reading.votes(outsider, x, y)
    for name, reader in reading.READERS.items():
        tried = reading.accuracies(reader(labels, mass), answers, y_test)
        found[name] = _best(tried, "reading", True)
    spreads = probing.spread_over(outsider.spaces, known, y)
    votes = {
        "spread inputs vote": reading.by_inputs(labels, spreads),
        "respread inputs vote": reading.by_respreading(labels, known, y),
    }
    for name, readings in votes.items():
        found[name] = _best(reading.accuracies(readings, answers, y_test), "reading", True)
    for name, attack in PROBES.items():
        found[name] = _best(attack(outsider.spaces, known, y, y_test), "layers", True)
    found["label spreading"] = _best(probing.label_spreading(spreads, y_test), "layers", True)
    plan = training.Lessons(steps, augment, seed)
    trained = [
        *training.fine_tuned(outsider, x, y, y_test, plan),
        *training.pseudo_labelled(outsider, x, y, known, y_test, plan),
    ]
    return found | _by_attack(trained, "training", True)


def probe_others(outsider: Outsider, data: Data, n: int, seed: int) -> Results:
    """Linear probes on every layer that `ladder` does not look at.

    Args:
        outsider: made with `others`.
        data, n, seed: as for `ladder`, with the same labelled samples.
    """
    chosen = labelled(data, n, seed)
    known = outsider.layers(data.x[chosen])
    spaces = {name: s for name, s in outsider.spaces.items() if name.startswith("other")}
    tried = probing.linear_probes(spaces, known, data.y[chosen], data.y_test)
    return {"linear probes, other layers": _best(tried, "layers", True)}


def without_model(data: Data, n: int, seed: int, augment: bool, steps: int = STEPS) -> Results:
    """The attacks of `ladder` that need no model: the same for all protections of the data."""
    chosen = labelled(data, n, seed)
    x, y = data.x[chosen], data.y[chosen]
    space, project = raw_inputs(data)
    spaces, known = {"inputs": space}, {"inputs": project(x)}
    found = {
        f"{name} of raw inputs": _best(attack(spaces, known, y, data.y_test), "no model", False)
        for name, attack in PROBES.items()
    }
    spreads = probing.spread_over(spaces, known, y)
    tried = probing.label_spreading(spreads, data.y_test)
    found["label spreading of raw inputs"] = _best(tried, "no model", False)
    scores = spreads[f"inputs, {NEIGHBOURS} neighbours, alpha = 0.99"]
    nearby = probing.rows(probing.balanced(scores))[: len(space.unlabelled)]
    plan = training.Lessons(steps, augment, seed)
    trained = training.alone(data, data.x[:UNLABELLED], x, y, nearby, plan)
    return found | _by_attack(trained, "no model", False)


def unlabelled_attacks(outsider: Outsider, data: Data, seed: int = 0) -> Results:
    """Every attack without labels.

    `clusters matched by an oracle` is how good the best clustering is; it takes test labels to
    name the clusters, so `reachable` is false. Beside it, `clusters named at random` is what
    the same clustering is worth to the outsider.
    """
    labels, y = reading.labels_of(outsider), data.y_test
    most = float(np.bincount(y).max() / len(y))
    found = {
        "one class for all": _best([("the most frequent", most)], "no model", False),
        "identity": _best(unlabelled.identity(outsider.answers.test, y), "no labels", True),
    }
    frequencies = {
        "frequencies, balanced": unlabelled.frequency_balanced(labels, y, seed),
        "frequencies, long tail": unlabelled.frequency_long_tail(labels, y, RATIO, seed),
    }
    for name, tried in frequencies.items():
        found[name] = _best(tried.items(), "no labels", True)
    groups = dict(unlabelled.clusterings(labels))
    oracle = _best(
        ((name, unlabelled.matched_by_oracle(group, y)) for name, group in groups.items()),
        "clustering quality",
        True,
    )
    named = unlabelled.named_at_random(groups[oracle["setting"]], y, seed)
    honest = {**oracle, "best": named, "family": "no labels"}
    for entry in found.values():
        entry["reachable"] = True
    return found | {
        "clusters named at random": {**honest, "reachable": True},
        "clusters matched by an oracle": {**oracle, "reachable": False},
    }


def _best(tried: Iterable[tuple[str, float]], family: str, needs_model: bool) -> dict[str, Any]:
    settings = dict(tried)
    setting = max(settings, key=lambda name: settings[name])
    return {
        "best": settings[setting],
        "setting": setting,
        "tried": len(settings),
        "family": family,
        "needs_model": needs_model,
    }


def _by_attack(
    trained: Iterable[tuple[str, str, float]], family: str, needs_model: bool
) -> Results:
    attacks: dict[str, list[tuple[str, float]]] = {}
    for attack, setting, accuracy in trained:
        attacks.setdefault(attack, []).append((setting, accuracy))
    return {name: _best(tried, family, needs_model) for name, tried in attacks.items()}
