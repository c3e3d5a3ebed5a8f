"""Tables of what an outsider gets (P1, P2)."""

from .formats import NONE, minus, over_seeds, table
from .found import BySeed, Results, attacks, best, best_names, from_scratch, in_order

DEFAULTS = "defaults"
FAMILIES = ("reading", "layers", "training", "no model")
UNLABELLED = (
    "one class for all",
    "identity",
    "frequencies, balanced",
    "frequencies, long tail",
    "clusters named at random",
    "clusters matched by an oracle",
)


def tables(results: Results) -> list[str]:
    found = []
    if results.samples:
        found.append(f"Every attack on the {DEFAULTS}, and without a model:\n\n" + every(results))
        found.append("The best attack of each seed, for every way:\n\n" + of_ways(results))
        found.append(
            "How far it lies above the best attack without a model, and above an ordinary "
            "classifier from scratch, in points:\n\n" + above(results)
        )
        found.append("Which attack that was:\n\n" + which(results))
    if any(results.ladder.of(f"{way}, no labels") for way in results.ways):
        found.append("Without a single label:\n\n" + without_labels(results))
    return found


def cells(results: Results, way: str, n: int) -> BySeed:
    """With the probes of other layers, in the seeds that have them."""
    others = results.ladder.of(f"{way}, other layers, n = {n}")
    found = results.ladder.of(f"{way}, n = {n}")
    return {seed: {**cell, **others.get(seed, {})} for seed, cell in found.items()}


def every(results: Results) -> str:
    """One row for each attack, by family; the best of either kind in bold."""
    count, samples = len(results.ladder.seeds), results.samples
    found: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    tried: dict[tuple[str, str], int] = {}
    for n in samples:
        for source in (cells(results, DEFAULTS, n), cells(results, "no model", n)):
            for seed, cell in source.items():
                for name, each in attacks(cell).items():
                    key = each["family"], name
                    found.setdefault(key, {}).setdefault(n, {})[seed] = each["best"]
                    tried[key] = max(tried.get(key, 0), each["tried"])
    most: dict[tuple[bool, int], float] = {}
    for (family, _), by_n in found.items():
        for n, values in by_n.items():
            kind = family == "no model", n
            most[kind] = max(most.get(kind, 0.0), sum(values.values()) / len(values))

    def shown(family: str, n: int, values: dict[int, float]) -> str:
        text = over_seeds(values, count)
        leads = values and sum(values.values()) / len(values) == most[family == "no model", n]
        return f"**{text}**" if leads else text

    rows = []
    for family in in_order({family for family, _ in found}, FAMILIES):
        for key in sorted(key for key in found if key[0] == family):
            by_n = found[key]
            row = [shown(family, n, by_n.get(n, {})) for n in samples]
            rows.append([family, key[1], *row, str(tried[key])])
    return table(["family", "attack", *(f"n = {n}" for n in samples), "settings tried"], rows)


def of_ways(results: Results) -> str:
    ladder, count, samples = results.ladder, len(results.ladder.seeds), results.samples
    twin = ladder.figures("twin", "accuracy")
    rows = []
    for way in results.ways:
        decoded = ladder.figures(f"{way}, model", "accuracy")
        reached = [over_seeds(best(cells(results, way, n), True), count) for n in samples]
        rows.append([way, over_seeds(decoded, count), minus(decoded, twin, count), *reached])
    without = [cells(results, "no model", n) for n in samples]
    alone = [over_seeds(best(found, False), count) for found in without]
    rows.append(["*best without a model*", NONE, NONE, *alone])
    scratch = [over_seeds(from_scratch(found), count) for found in without]
    rows.append(["*classifier from scratch*", NONE, NONE, *scratch])
    rows.append(["*unprotected twin*", over_seeds(twin, count), "", *([NONE] * len(samples))])
    header = ["way", "decoded %", "minus twin, points", *(f"best %, n = {n}" for n in samples)]
    return table(header, rows)


def above(results: Results) -> str:
    count, samples = len(results.ladder.seeds), results.samples
    rows = []
    for way in results.ways:
        row = [way]
        for theirs in (lambda found: best(found, False), from_scratch):
            for n in samples:
                reached = best(cells(results, way, n), True)
                row.append(minus(reached, theirs(cells(results, "no model", n)), count))
        rows.append(row)
    header = [f"over {what}, n = {n}" for what in ("no model", "scratch") for n in samples]
    return table(["way", *header], rows)


def which(results: Results) -> str:
    samples = results.samples
    names = {
        way: [best_names(cells(results, way, n), True) for n in samples] for way in results.ways
    }
    alone = [best_names(cells(results, "no model", n), False) for n in samples]
    rows = [[way, *map(_short, found)] for way, found in names.items()]
    rows.append(["*without a model*", *map(_short, alone)])
    return table(["way", *(f"n = {n}" for n in samples)], rows)


def _short(names: list[str]) -> str:
    more = f" + {len(names) - 2}" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more if names else NONE


def without_labels(results: Results) -> str:
    ladder, count = results.ladder, len(results.ladder.seeds)
    found = {way: ladder.of(f"{way}, no labels") for way in results.ways}
    every = [attacks(cell) for by_seed in found.values() for cell in by_seed.values()]
    names = in_order({name for each in every for name in each}, UNLABELLED)
    beyond = {name for each in every for name in each if not each[name].get("reachable", True)}
    rows = [
        [way, *(over_seeds(ladder.figures(f"{way}, no labels", n, "best"), count) for n in names)]
        for way in results.ways
        if found[way]
    ]
    header = [f"{name} *(not reachable)*" if name in beyond else name for name in names]
    return table(["way", *header], rows)
