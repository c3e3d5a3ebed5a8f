"""Figures, drawn without a display; the same results give the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.optimize import isotonic_regression

from keras_encryip.tracing.statistics import SIGNIFICANCE

from ..ladder import MAIN
from . import outsiders
from .formats import p_value
from .found import Results, best, from_scratch
from .removals import Proof, proofs
from .statistics import paired, summary
from .weaknesses import ACCURACY_AIM, AIMED, ATTACK_AIM

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

MARKERS = "osD^vP*X"
GREY = "#666666"
LEAST = -30.0
"""Of log10 p, where the heat map's colours end."""


def drawn(every: Sequence[Results]) -> dict[str, bytes | None]:
    """File name → PNG; `None` where there is nothing to draw."""
    makers: dict[str, Callable[[Sequence[Results]], Figure | None]] = {
        "benchmarks-label-cost.png": label_cost,
        "benchmarks-trade-off.png": trade_off,
        "benchmarks-removal.png": removal,
    }
    found: dict[str, bytes | None] = {}
    for name, make in makers.items():
        figure = make(every)
        found[name] = None if figure is None else _png(figure)
    return found


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()


def _mean(values: Mapping[int, float]) -> float:
    return 100 * summary(values.values()).mean


# --- label cost --------------------------------------------------------------------------


def label_cost(every: Sequence[Results]) -> Figure | None:
    """The best attack's accuracy by labelled samples, for the main ways."""
    shown = [results for results in every if results.samples]
    if not shown:
        return None
    figure = Figure(figsize=(6.2 * len(shown) + 2.6, 5), layout="constrained")
    for axes, results in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _label_cost(axes, results)
    _legend(figure, "outside right upper")
    return figure


def _label_cost(axes: Any, results: Results) -> None:
    ways = [way for way in results.ways if way in MAIN]
    lines = {
        f"attack: {way}": {n: best(outsiders.cells(results, way, n), True) for n in results.samples}
        for way in ways
    }
    without = {n: outsiders.cells(results, "no model", n) for n in results.samples}
    lines["best without a model"] = {n: best(cells, False) for n, cells in without.items()}
    lines["classifier from scratch"] = {n: from_scratch(cells) for n, cells in without.items()}
    for place, (label, by_n) in enumerate(lines.items()):
        found = {n: values for n, values in by_n.items() if values}
        if not found:
            continue
        own = label.startswith("attack")
        apart = 1.035 ** (place - (len(lines) - 1) / 2)  # so that equal points can be seen
        middle = np.array([_mean(values) for values in found.values()])
        low = middle - [100 * min(values.values()) for values in found.values()]
        high = [100 * max(values.values()) for values in found.values()] - middle
        axes.errorbar(
            [n * apart for n in found],
            middle,
            yerr=np.abs([low, high]),
            label=label,
            color=COLOURS[place % len(COLOURS)] if own else GREY,
            marker=MARKERS[place % len(MARKERS)],
            linestyle="-" if own else "--",
            markersize=6,
            linewidth=1.6,
            capsize=3,
        )
    holder = results.ladder.figures(f"{outsiders.DEFAULTS}, model", "accuracy")
    if holder:
        axes.axhline(
            _mean(holder), color="black", linestyle=":", label=f"key holder, {outsiders.DEFAULTS}"
        )
    axes.set_xscale("log")
    axes.set_xticks(results.samples, [str(n) for n in results.samples])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(
        xlabel="labelled samples per class (log scale)",
        ylabel="test accuracy, %",
        title=f"{results.data}, {_seeds(results)}",
    )
    axes.grid(alpha=0.3)


def _seeds(results: Results) -> str:
    n = len(results.ladder.seeds)
    return "one seed" if n == 1 else f"mean of {n} seeds, worst to best"


# --- trade-off ---------------------------------------------------------------------------


def trade_off(every: Sequence[Results]) -> Figure | None:
    """Each way by its cost in accuracy and by what the best attack gets."""
    panels = [
        (results, n, points)
        for results in every
        for n in AIMED
        if (points := _trade_offs(results, n))
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(14, 5.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (results, n, points) in zip(grid, panels, strict=False):
        _trade_off(axes, results, n, points)
    _legend(figure, "outside lower center", ncols=6)
    return figure


def _legend(figure: Figure, place: str, **options: Any) -> None:
    """One for all panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc=place, fontsize=9, **options)


def _trade_offs(results: Results, n: int) -> dict[str, tuple[float, float]]:
    """Way → (decoded minus twin, best attack), in points and %."""
    twin = results.ladder.figures("twin", "accuracy")
    found = {}
    for way in results.ways:
        apart = paired(results.ladder.figures(f"{way}, model", "accuracy"), twin)
        reached = best(outsiders.cells(results, way, n), True)
        if apart is not None and reached:
            found[way] = 100 * apart.mean, _mean(reached)
    return found


def _trade_off(
    axes: Any, results: Results, n: int, points: Mapping[str, tuple[float, float]]
) -> None:
    for own, label, colour, marker in (
        (True, "main ways", COLOURS[0], "o"),
        (False, "grid", COLOURS[1], "D"),
    ):
        found = [place for way, place in points.items() if (way in MAIN) is own]
        if found:
            axes.scatter(*zip(*found, strict=True), c=colour, marker=marker, label=label, zorder=3)
    x, y = zip(*points.values(), strict=True)
    aim = 100 * ACCURACY_AIM
    axes.axvline(aim, color=GREY, linestyle="-.", linewidth=1.2, label="aim: decoded, at least")
    left, right = min(*x, aim), max(*x, aim, 0.0)
    heights = [*y]
    without = best(outsiders.cells(results, "no model", n), False)
    if without:
        alone = _mean(without)
        most = alone + 100 * ATTACK_AIM
        heights += [alone, most]
        axes.axhline(alone, color=GREY, linestyle="--", linewidth=1.2, label="best without a model")
        axes.axhline(most, color=GREY, linestyle=":", linewidth=1.6, label="aim: attacks, at most")
        met = {"color": COLOURS[2], "alpha": 0.12, "linewidth": 0, "label": "both aims met"}
        axes.fill_between([aim, right + 10], [most, most], -10, **met)
    room, space = 0.08 * max(right - left, 0.5), 0.06 * max(max(heights) - min(heights), 1.0)
    axes.set_xlim(left - room, right + room)
    axes.set_ylim(min(heights) - space, max(heights) + 4 * space)  # names need room above
    _named(axes, points)
    axes.set(
        xlabel="decoded accuracy minus twin, points",
        ylabel=f"best attack, n = {n}: accuracy, %",
        title=f"{results.data}, n = {n} labelled per class, "
        + ("one seed" if len(results.ladder.seeds) == 1 else "means of seeds"),
    )
    axes.grid(alpha=0.3)


def _named(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names stand in a column at the right, near their points' height but apart."""
    order = sorted(points, key=lambda way: (points[way][1], -points[way][0]))
    low, high = axes.get_ylim()
    wanted = np.array([(points[way][1] - low) / (high - low) for way in order])
    for way, place in zip(order, apart(wanted, 0.045), strict=True):
        axes.annotate(
            way,
            xy=points[way],
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "alpha": 0.7},
        )


def apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Sorted heights, moved as little as it takes until neighbours are `gap` apart.

    Within 0 … 1, where a gap becomes smaller if there is no room.
    """
    gap = min(gap, 1 / len(wanted))
    steps = gap * np.arange(len(wanted))
    near = isotonic_regression(wanted - steps).x
    return np.asarray(np.clip(near, 0, 1 - steps[-1]) + steps)


# --- removal -----------------------------------------------------------------------------


def removal(every: Sequence[Results]) -> Figure | None:
    """p-values by tampering and proof, over the accuracy that is left."""
    shown = [(results, found) for results in every if (found := proofs(results))]
    if not shown:
        return None
    most = max(len(results.rungs) for results, _ in shown)
    width = sum(3.0 + 1.15 * len(found) for _, found in shown)
    figure = Figure(figsize=(width + 1, 0.42 * most + 2.4), layout="constrained")
    grid = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (results, found) in zip(grid, shown, strict=True):
        image = _heat_map(axes, results, found)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.85)
    bar.set_label(f"log10 of the p-value (median of seeds), {LEAST:.0f} or less as {LEAST:.0f}")
    return figure


def _heat_map(axes: Any, results: Results, found: Mapping[str, Proof]) -> Any:
    rungs = results.rungs
    values = np.full((len(rungs), len(found)), np.nan)
    for column, proof in enumerate(found.values()):
        for row, rung in enumerate(rungs):
            p = [*proof.p.get(rung, {}).values()]
            if p:
                values[row, column] = np.median([max(LEAST, _log10(each)) for each in p])
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap="cividis", norm=Normalize(LEAST, 0), aspect="auto"
    )
    for column, proof in enumerate(found.values()):
        for row, rung in enumerate(rungs):
            accuracy, flags = proof.accuracy.get(rung, {}), proof.found.get(rung, {})
            if not accuracy or not flags:
                continue
            lost = len(flags) - sum(flags.values())
            text = f"{_mean(accuracy):.1f}"
            if lost:
                text += " lost" if lost == len(flags) else f" lost {lost}/{len(flags)}"
            dark = np.isnan(values[row, column]) or values[row, column] < LEAST / 2
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if dark and not np.isnan(values[row, column]) else "black",
                fontweight="bold" if lost else "normal",
            )
    axes.set_xticks(range(len(found)), [p.name.replace(", ", ",\n") for p in found.values()])
    axes.set_yticks(range(len(rungs)), rungs)
    axes.tick_params(length=0)
    axes.set_title(
        f"{results.data}: accuracy left, %; lost: p > {p_value(SIGNIFICANCE)}", fontsize=11
    )
    axes.set_xticks(np.arange(len(found) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rungs) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    return image


def _log10(p: float) -> float:
    return float(np.log10(p)) if p > 0 else LEAST
