"""Three pictures, drawn without a display."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..ladder import ALONE
from ..trainings import DEFAULTS, MAIN
from .aims import AIMED, LEAD, LOSS
from .numbers import figures, mean, paired
from .tables import best, proofs, samples, ways

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

MARKERS = "osD^vP*Xh"
GREY = "#666666"
LEAST = -30.0
"""Of log10 p, where the heat map's colours end."""


def pictures(rows: pd.DataFrame) -> dict[str, bytes]:
    """File name → PNG."""
    every = dict(iter(rows.groupby("data", sort=False)))
    drawn = {"label-cost": label_cost, "trade-off": trade_off, "removal": removal}
    return {f"benchmarks-{name}.png": _png(draw(every)) for name, draw in drawn.items()}


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // 2)
    figure = Figure(figsize=(13, 4.6 * rows + 1), layout="constrained")
    return figure, [figure.add_subplot(rows, 2, place + 1) for place in range(count)]


def _finished(figure: Figure) -> Figure:
    """With one legend for all panels."""
    found: dict[str, object] = {}
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        found |= {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def label_cost(every: Mapping[str, pd.DataFrame]) -> Figure:
    """The best attack's accuracy by labelled samples: mean of seeds, from worst to best."""
    figure, panels = _panels(len(every))
    for axes, (data, rows) in zip(panels, every.items(), strict=True):
        lines = {f"best attack: {way}": (rows, way) for way in MAIN if way in ways(rows)}
        lines["best without a model"] = (rows, ALONE)
        lines["from scratch"] = (rows[rows.attack == "from scratch"], ALONE)
        for place, (label, (part, method)) in enumerate(lines.items()):
            found = {n: 100 * best(part, method, n) for n in samples(rows)}
            found = {n: values for n, values in found.items() if len(values)}
            middle = [mean(values) for values in found.values()]
            ends = np.array([(values.min(), values.max()) for values in found.values()])
            if middle:
                axes.errorbar(
                    [n * 1.035**place for n in found],  # so that equal points can be seen
                    middle,
                    yerr=np.abs(ends.T - middle),
                    label=label,
                    color=GREY if method == ALONE else COLOURS[place],
                    marker=MARKERS[place],
                    linestyle="--" if method == ALONE else "-",
                    capsize=3,
                )
        holder = 100 * mean(figures(rows, DEFAULTS, "training", "accuracy"))
        axes.axhline(holder, color="black", linestyle=":", label="key holder, defaults")
        axes.set_xscale("log")
        axes.set_xticks(samples(rows), [str(n) for n in samples(rows)])
        axes.set(title=data, xlabel="labelled samples per class", ylabel="test accuracy, %")
    return _finished(figure)


def trade_off(every: Mapping[str, pd.DataFrame]) -> Figure:
    """Each way by its cost in accuracy and by what the best attack gets, means of seeds."""
    wanted = [(data, n) for data in every for n in AIMED]
    figure, panels = _panels(len(wanted))
    for axes, (data, n) in zip(panels, wanted, strict=True):
        rows = every[data]
        twin = figures(rows, "twin", "training", "accuracy")
        for place, way in enumerate(ways(rows)):
            lost = paired(figures(rows, way, "training", "accuracy"), twin)
            reached = best(rows, way, n)
            if len(lost) and len(reached):
                style = {"marker": MARKERS[place], "color": COLOURS[place % len(COLOURS)]}
                axes.scatter(100 * mean(lost), 100 * mean(reached), label=way, s=60, **style)
        alone = 100 * mean(best(rows, ALONE, n))
        axes.axhline(alone, color=GREY, linestyle="--", label="best without a model")
        axes.axhline(alone + 100 * LEAD, color=GREY, linestyle=":", label="aim: attacks, at most")
        axes.axvline(100 * LOSS, color=GREY, linestyle="-.", label="aim: decoded, at least")
        axes.set(title=f"{data}, n = {n}", ylabel="best attack: test accuracy, %")
        axes.set_xlabel("decoded accuracy minus twin, points")
    return _finished(figure)


def removal(every: Mapping[str, pd.DataFrame]) -> Figure:
    """Median log10 p by tampering and proof, over the mean accuracy that is left."""
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    panels = figure.subplots(1, len(every), squeeze=False)[0]
    for axes, (data, rows) in zip(panels, every.items(), strict=True):
        found = proofs(rows)
        names, order = found.proof.unique(), found.tampering.unique()
        logs = np.log10(found.p.clip(lower=10**LEAST)).groupby([found.tampering, found.proof])
        grid = logs.median().unstack().reindex(index=order, columns=names)
        image = axes.imshow(grid, cmap="cividis", vmin=LEAST, vmax=0, aspect="auto")
        for (tampering, proof), part in found.groupby(["tampering", "proof"]):
            lost = int((~part.found).sum())
            text = f"{100 * mean(part.accuracy):.1f}" + (f"\nlost {lost}/{len(part)}" * (lost > 0))
            colour = "white" if grid.loc[tampering, proof] < LEAST / 2 else "black"
            place = ([*names].index(proof), [*order].index(tampering))
            axes.text(*place, text, color=colour, ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axes.set_yticks(range(len(order)), order)
        axes.set_title(f"{data}: accuracy left, %; lost: not found")
    bar = figure.colorbar(image, ax=list(panels), shrink=0.85)
    bar.set_label(f"log10 of the p-value, median of seeds; {LEAST:.0f} or less as {LEAST:.0f}")
    return figure
