"""Forgers: can a key, a claim to a model, or the evidence of a trace be made up?

random keys    points (z, y) that the owner never gave out, half of them at a user's z
pooled keys    m = 1 … t + 2 users combine their keys with random shares, or interpolate
               them and mint a new one; or choose the shares that fit the z of innocents, if
               they know them (`find_traitors` states when these are named)
claims         a forger makes trace inputs for an invented model until a service that runs
               something else answers as an innocent's key would; as an authority of the
               forger's own, and as the owner
evidence       an honest folder of evidence after changes

Nothing but the claims needs a trained model.
"""

from typing import Any

from ..removal import world
from ..rows import Rows
from ..trainings import Trainings
from .changes import changed_evidence
from .claiming import claims
from .keys import pooled_keys, random_keys

FORGER = "forger"
"""The method of the rows: no model is attacked."""

KEYS = 1000
THRESHOLDS = (1, 2, 4, 8)
COALITIONS = 10
"""Of each number of members."""


def run(trainings: Trainings, rows: Rows) -> None:
    """The rows of one seed that need no trained model."""
    rows.measure(FORGER, "random keys", "", lambda: random_keys(KEYS))
    for t in THRESHOLDS:

        def pooled(t: int = t) -> dict[str, Any]:
            return pooled_keys(t, COALITIONS, trainings.seed)

        rows.measure(FORGER, "pooled keys", f"t = {t}", pooled)
    rows.measure(FORGER, "changed evidence", "", changed_evidence)


def run_claims(trainings: Trainings, rows: Rows) -> None:
    """Those that need a trained model, and a twin."""

    def claimed() -> dict[str, Any]:
        return claims(world(trainings), trainings.twin.model, trainings.seed)

    rows.measure(FORGER, "claims", "", claimed)
