"""How a finding is judged against an aim."""

from dataclasses import dataclass
from enum import Enum

from .statistics import Difference

TINY = 1e-9  # differences of accuracies are not exact


class Verdict(Enum):
    """In the order of the report."""

    MISSED = "Aims that are missed"
    OPEN = "Within the aim, but not shown"
    LIMIT = "Known limits, as measured"
    MET = "Aims that are met"


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    text: str


def at_most(found: Difference, aim: float) -> Verdict:
    """Met only if the whole interval is within; one seed has none."""
    if found.mean > aim + TINY:
        return Verdict.MISSED
    shown = found.interval is not None and found.interval[1] <= aim + TINY
    return Verdict.MET if shown else Verdict.OPEN


def at_least(found: Difference, aim: float) -> Verdict:
    if found.mean < aim - TINY:
        return Verdict.MISSED
    shown = found.interval is not None and found.interval[0] >= aim - TINY
    return Verdict.MET if shown else Verdict.OPEN
