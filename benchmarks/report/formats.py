"""Figures as text, and tables that can be read in raw Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .statistics import LEVEL, Difference, paired, summary

NONE = "–"
"""Stands where nothing was measured."""

SEEDS = "one seed"
INTERVAL = f"{100 * LEVEL:.0f} % interval"


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


def times(value: float) -> str:
    return number(value, 2)


def over_seeds(values: Mapping[int, float], of: int, form: Callable[[float], str] = percent) -> str:
    """Mean, sample standard deviation in brackets, and the number of seeds unless it is `of`."""
    if not values:
        return NONE
    found = summary(values.values())
    text = form(found.mean)
    if found.deviation is not None:
        text += f" ({form(found.deviation)})"
    return text if found.count == of else f"{text} [{found.count}]"


def minus(ours: Mapping[int, float], theirs: Mapping[int, float], of: int) -> str:
    """Mean paired difference in points."""
    found = paired(ours, theirs)
    if found is None:
        return NONE
    text = points(found.mean)
    return text if len(found.seeds) == of else f"{text} [{len(found.seeds)}]"


def interval(found: Difference | None) -> str:
    if found is None:
        return NONE
    if found.interval is None:
        return SEEDS
    low, high = found.interval
    return f"{points(low)} … {points(high)}"


def with_interval(found: Difference) -> str:
    """For a sentence."""
    if found.interval is None:
        return f"{points(found.mean)} points ({SEEDS}, so no interval)"
    return f"{points(found.mean)} points ({INTERVAL} {interval(found)}, {len(found.seeds)} seeds)"


def of_seeds(flags: Mapping[int, bool]) -> str:
    """`3 of 3`."""
    return f"{sum(flags.values())} of {len(flags)}" if flags else NONE


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """In backquotes; what is beyond `most` is counted."""
    text = ", ".join(f"`{name}`" for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, columns padded."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |".rstrip()

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
