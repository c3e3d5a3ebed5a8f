"""The owner's commitment to a codebook's trace labels, which evidence opens."""

import hashlib
from dataclasses import dataclass
from typing import Final

from keras_encryip.crypto.kem import SharedSecret
from keras_encryip.crypto.slots import commitment
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.ciphertext import label_keys

_TAG: Final = b"encryip live label v1\0"


@dataclass(frozen=True, repr=False)
class LiveLabel:
    """A trace label of a codebook, and what opens it. Secret until shown as evidence.

    Attributes:
        label: its number j.
        slot: where it lies.
        key: L_j, 16 bytes; together with a slot key it reads the label.
        classes: what bits 0 and 1 read.
    """

    label: int
    slot: int
    key: bytes
    classes: tuple[int, int]

    @property
    def leaf(self) -> bytes:
        """SHA-256 over a tag ‖ j (4) ‖ slot (2) ‖ L_j (16) ‖ two classes (4 each), big-endian."""
        place = self.label.to_bytes(4, "big") + self.slot.to_bytes(2, "big")
        a, b = (c.to_bytes(4, "big") for c in self.classes)
        return hashlib.sha256(_TAG + place + self.key + a + b).digest()


def live_labels(secret: SharedSecret, assignment: LabelAssignment) -> list[LiveLabel]:
    """All trace labels of a codebook, in the order of `assignment.trace`.

    Args:
        secret: what the codebook's header opens to.
        assignment: as the codebook numbers the labels.
    """
    labels, (keys, _) = assignment.trace, label_keys(secret, assignment.trace)
    places = zip(labels.tolist(), assignment.slots[labels].tolist(), strict=True)
    rows = zip(places, keys, assignment.pairs.tolist(), strict=True)
    return [LiveLabel(*place, key.tobytes(), (a, b)) for place, key, (a, b) in rows]


def live_commitment(labels: list[LiveLabel]) -> str:
    """What the event log keeps of live labels, in hexadecimal."""
    return commitment(live.leaf for live in labels)
