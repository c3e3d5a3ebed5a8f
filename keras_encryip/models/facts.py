"""What `summary` and `repr` say of a protected model: its sizes, and who unlocked it."""

from typing import Any

from keras_encryip.models.homophones import STRATEGIES
from keras_encryip.models.secrets import UnlockedSecrets


def facts(model: Any) -> list[str]:
    """Some short sentences without secrets; of a locked model, what its codebook tells.

    Args:
        model: a `ProtectedModel`.
    """
    sizes = f"{model.num_labels:,} confused labels for {model.num_classes:,} classes"
    secrets: UnlockedSecrets | None = model._secrets
    if secrets is None:
        return [sizes, "locked"]
    if secrets.record is None:
        return [sizes, "unlocked with a key bundle"]
    assignment = secrets.assignment()
    each = "homophone" if assignment.homophones == 1 else "homophones"
    return [
        sizes,
        f"{assignment.homophones:,} {each} per class ({_strategy(model, secrets)})",
        f"{assignment.trace.size:,} trace labels",
        "unlocked by its owner",
    ]


def _strategy(model: Any, secrets: UnlockedSecrets) -> str:
    """The one that was learned; until then the model's setting."""
    if secrets.training is None:
        return str(model.strategy)
    named = {kind: name for name, kind in STRATEGIES.items()}
    return named.get(type(secrets.training.homophones), str(model.strategy))
