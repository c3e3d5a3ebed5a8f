"""Every attack of an outsider, registered: what each takes from its `Case`."""

from collections.abc import Iterator

import numpy as np

from . import probing, reading, training, unlabelled
from .case import Case
from .outsider import batched
from .registry import Accuracies, attack

RATIO = 100.0
"""Of the most frequent class to the rarest, in a long-tailed stream."""

PROBES = {
    "linear probes": probing.linear_probes,
    "nearest means": probing.nearest_means,
    "named clusters": probing.named_clusters,
}

# --- which class each confused label stands for --------------------------------


def read(case: Case, readings: reading.Readings) -> Accuracies:
    return reading.accuracies(readings, case.outsider.answers.test, case.y_test)


for name, reader in reading.READERS.items():

    @attack(name, family="reading")
    def by_label(case: Case, reader: reading.Reader = reader) -> Accuracies:
        return read(case, reader(case.labels, case.mass))


@attack("spread inputs vote", family="reading")
def spread_inputs_vote(case: Case) -> Accuracies:
    return read(case, reading.by_inputs(case.labels, case.spreads))


@attack("respread inputs vote", family="reading")
def respread_inputs_vote(case: Case) -> Accuracies:
    return read(case, reading.by_respreading(case.labels, case.known, case.y))


# --- layers, and raw inputs ----------------------------------------------------

for name, probe in PROBES.items():

    @attack(name, family="layers")
    def on_layers(case: Case, probe: probing.Probe = probe) -> Accuracies:
        return probe(case.outsider.spaces, case.known, case.y, case.y_test)

    @attack(f"{name} of raw inputs", family="raw inputs", needs_model=False)
    def on_inputs(case: Case, probe: probing.Probe = probe) -> Accuracies:
        return probe(case.inputs, case.known_inputs, case.y, case.y_test)


@attack("linear probes, other layers", family="layers")
def linear_probes_of_other_layers(case: Case) -> Accuracies:
    """Every layer that no other attack looks at."""
    others = case.outsider.others()
    known = others.layers(case.x)
    spaces = {name: s for name, s in others.spaces.items() if name.startswith("other")}
    return probing.linear_probes(spaces, known, case.y, case.y_test)


@attack("label spreading", family="layers")
def label_spreading(case: Case) -> Accuracies:
    return probing.label_spreading(case.spreads, case.y_test)


@attack("label spreading of raw inputs", family="raw inputs", needs_model=False)
def label_spreading_of_raw_inputs(case: Case) -> Accuracies:
    return probing.label_spreading(case.input_spreads, case.y_test)


@attack("label spreading of random features", family="raw inputs", needs_model=False)
def label_spreading_of_random_features(case: Case) -> Accuracies:
    return probing.label_spreading(case.random_spreads, case.y_test)


# --- training ------------------------------------------------------------------


@attack("new head", family="training")
def new_head(case: Case) -> Accuracies:
    found = batched(case.probed, case.outsider.test).argmax(1)
    yield "rate 0.01", probing.score(found, case.y_test)


@attack("fine-tuning", family="training")
def fine_tuning(case: Case) -> Accuracies:
    start = case.probed.get_weights()
    return training.fine_tuned(case.outsider, start, case.x, case.y, case.y_test, case.plan)


for structured in (False, True):

    @attack(f"pseudo-labels by {'confused label' if structured else 'input'}", family="training")
    def pseudo_labels(case: Case, structured: bool = structured) -> Accuracies:
        given = (case.x, case.y, case.shares, case.y_test, case.plan)
        return training.pseudo_labelled(case.outsider, *given, structured=structured)


@attack("from scratch", family="raw inputs", needs_model=False)
def from_scratch(case: Case) -> Accuracies:
    fast = training.from_scratch(case.data, case.x, case.y, case.plan, 3e-3)
    for rate, model in {0.001: case.network, 0.003: fast}.items():
        found = batched(model, case.data.x_test).argmax(1)
        yield f"rate {rate}", probing.score(found, case.y_test)


@attack("self-training", family="raw inputs", needs_model=False)
def self_training(case: Case) -> Accuracies:
    starts = {"label spreading": case.nearby, "network": batched(case.network, case.unlabelled)}
    return training.self_trained(case.data, case.unlabelled, case.x, case.y, starts, case.plan)


# --- without a single label ----------------------------------------------------


@attack("one class for all", family="no labels", needs_model=False)
def one_class(case: Case) -> Accuracies:
    yield "the most frequent", float(np.bincount(case.y_test).max() / len(case.y_test))


@attack("identity", family="no labels")
def identity(case: Case) -> Accuracies:
    return unlabelled.identity(case.outsider.answers.test, case.y_test)


@attack("frequencies, balanced", family="no labels")
def frequencies_balanced(case: Case) -> Accuracies:
    return unlabelled.frequency_balanced(case.labels, case.y_test, case.seed).items()


@attack("frequencies, long tail", family="no labels")
def frequencies_long_tail(case: Case) -> Accuracies:
    return unlabelled.frequency_long_tail(case.labels, case.y_test, RATIO, case.seed).items()


@attack("clusters named at random", family="no labels")
def clusters_named_at_random(case: Case) -> Accuracies:
    """What the best clustering is worth to who cannot name its groups."""
    quality = dict(clusters_matched_by_an_oracle(case))
    best = max(quality, key=lambda name: quality[name])
    yield best, unlabelled.named_at_random(case.groups[best], case.y_test, case.seed)


@attack("clusters matched by an oracle", family="out of reach")
def clusters_matched_by_an_oracle(case: Case) -> Iterator[tuple[str, float]]:
    """How good clusterings are; it takes test labels to name the groups."""
    for name, group in case.groups.items():
        yield name, unlabelled.matched_by_oracle(group, case.y_test)
