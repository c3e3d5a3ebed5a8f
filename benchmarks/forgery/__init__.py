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

from ..cells import Cells
from ..removal import world
from ..trainings import Trainings
from .changes import changed_evidence
from .claiming import claims
from .keys import pooled_keys, random_keys

KEYS = 1000
THRESHOLDS = (1, 2, 4, 8)
COALITIONS = 10
"""Of each number of members."""


def run(trainings: Trainings, cells: Cells) -> None:
    """The cells of one seed that need no trained model."""
    seed = trainings.seed
    name = f"seed {seed}"
    cells.get(f"{name}: random keys", lambda: random_keys(KEYS))
    for t in THRESHOLDS:
        key = f"{name}: pooled keys, t = {t}"
        cells.get(key, lambda t=t: pooled_keys(t, COALITIONS, seed))
    cells.get(f"{name}: evidence", changed_evidence)


def run_claims(trainings: Trainings, cells: Cells) -> None:
    """The one cell that needs a trained model, and a twin."""
    seed = trainings.seed
    cells.get(f"seed {seed}: claims", lambda: claims(world(trainings), trainings.twin.model, seed))
