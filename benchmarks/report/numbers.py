"""Figures over seeds: picked from the rows, compared in pairs, and as text."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import sem, t

LEVEL = 0.95
"""Of every confidence interval."""

INTERVAL = f"{100 * LEVEL:.0f} % interval"
NONE = "–"
"""Stands where nothing was measured."""


def figures(
    rows: pd.DataFrame, method: str, attack: str, metric: str, setting: str = ""
) -> pd.Series:
    """Seed → figure, of the seeds that have it."""
    wanted = {"method": method, "attack": attack, "setting": setting, "metric": metric}
    found = rows[np.logical_and.reduce([rows[name] == value for name, value in wanted.items()])]
    return found.set_index("seed")["value"].astype(float)


def interval(values: pd.Series) -> tuple[float, float]:
    """Student's, for the mean over seeds. One seed has none: NaN.

    It is about the choice of seeds alone: the test set is the same for all of them.
    """
    if len(values) < 2:
        return np.nan, np.nan
    half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * sem(values)
    return mean(values) - half, mean(values) + half


def mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy()))


def paired(ours: pd.Series, theirs: pd.Series) -> pd.Series:
    """Ours minus theirs, of the seeds that both have."""
    return (ours - theirs).dropna()


# --- as text -----------------------------------------------------------------------------


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Without a negative zero."""
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''},.{decimals}f}"


def percent(share: float) -> str:
    return number(100 * share, 2)


def points(difference: float) -> str:
    return number(100 * difference, 2, sign=True)


def p_value(p: float) -> str:
    """As `3e-12`. Zero is what is below the smallest float."""
    if p <= 0:
        return "0"
    return f"{p:.0e}".replace("e-0", "e-") if p < 0.01 else f"{p:.2g}"


def seconds(value: float) -> str:
    """Two digits below ten, whole ones above."""
    return f"{value:.2g}" if value < 9.95 else number(value, 0)


def within(values: pd.Series, form: Callable[[float], str]) -> str:
    """Its interval."""
    low, high = interval(values)
    return NONE if np.isnan(low) else f"{form(low)} … {form(high)}"


def spread(values: pd.Series, form: Callable[[float], str] = percent, of: int | None = None) -> str:
    """Mean, sample standard deviation in brackets, and the number of seeds unless it is `of`."""
    if values.empty:
        return NONE
    text = form(mean(values))
    if len(values) > 1:
        text += f" ({form(values.std()).lstrip('+')})"
    return text if of in (None, len(values)) else f"{text} [{len(values)}]"


def markdown(table: pd.DataFrame) -> str:
    """Columns padded, so that it can be read as it is."""
    lines = [
        [str(cell).replace("|", "\\|") for cell in row] for row in table.fillna(NONE).to_numpy()
    ]
    lines.insert(0, [*table.columns])
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
