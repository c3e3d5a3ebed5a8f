"""What an outsider without a key gets from a protected model's weights.

Attacks have no label at all, or n labelled samples per class and the owner's training inputs
without labels. `catalogue` registers them; a new one is a function with `@attack` in a module
that is imported here. Every attack reports its best setting *on the test set*, and how many
settings were tried.
"""

from . import catalogue
from .case import Case
from .outsider import UNLABELLED, Outsider, noise
from .registry import ATTACKS, Attack, attack

__all__ = ["ATTACKS", "UNLABELLED", "Attack", "Case", "Outsider", "attack", "catalogue", "noise"]
