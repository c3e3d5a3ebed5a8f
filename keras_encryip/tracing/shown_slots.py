"""The slots that a folder of evidence opens, against what the log committed to."""

from collections.abc import Sequence

import numpy as np

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.kem import split_bytes
from keras_encryip.crypto.slots import (
    BLIND_BYTES,
    LEAF_BYTES,
    MAX_SLOTS,
    SLOT_KEY_BYTES,
    CodewordOpening,
    SlotOpening,
    commitment,
)
from keras_encryip.errors import EvidenceError
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.live_labels import LiveLabel
from keras_encryip.tracing.events import Event
from keras_encryip.tracing.statement import (
    LEAKED_COUNTS,
    Accused,
    ShownSlot,
    Statement,
    leaked_leaf,
    slots_to_show,
)


class ShownSlots:
    """Some of an authority's slots, opened.

    Args:
        statement: of the evidence.
        created: the authority's first event, which committed to all slots.

    Attributes:
        numbers: which slots, all different.
        biases: float64 `[n]` of these.

    Raises:
        EvidenceError: an opening does not fit.
    """

    def __init__(self, statement: Statement, created: Event) -> None:
        count = created.details.get("slots")
        if not isinstance(count, int) or not 0 < count <= MAX_SLOTS:
            raise EvidenceError("The authority's first event does not say how many slots it has.")
        self.count = count
        leaves = _leaves(statement.slot_leaves, count, "slot_leaves")
        if commitment(leaves) != created.details.get("slot_commitment"):
            raise EvidenceError("The slots are not those that the log committed to.")
        self._openings = [_slot_opening(shown) for shown in statement.slots]
        self.numbers = [opening.slot for opening in self._openings]
        if len(set(self.numbers)) != len(self.numbers):
            raise EvidenceError("A slot is shown twice.")
        for opening in self._openings:
            if opening.slot >= count or opening.leaf != leaves[opening.slot]:
                raise EvidenceError(f"The opening of slot {opening.slot} is wrong.")
        self.biases = np.array([o.threshold for o in self._openings], np.float64) / 2.0**32

    def bits_of(self, accused: Accused, issued: Event) -> np.ndarray:
        """uint8 `[n]`: the accused's codeword at these slots, as `issued` committed to it."""
        leaves = _leaves(accused.codeword_leaves, self.count, "codeword_leaves")
        if commitment(leaves) != issued.details.get("codeword"):
            raise EvidenceError(
                f"The codeword of {accused.subject!r} is not what the log committed to."
            )
        if len(accused.bits) != len(self.numbers):
            raise EvidenceError(f"The codeword of {accused.subject!r} is not shown completely.")
        for slot, shown in zip(self.numbers, accused.bits, strict=True):
            blind = decode_base64(shown.blind, what="blind", length=BLIND_BYTES)
            if CodewordOpening(slot, shown.bit, blind).leaf != leaves[slot]:
                raise EvidenceError(f"The bit of {accused.subject!r} at slot {slot} is wrong.")
        return np.array([shown.bit for shown in accused.bits], np.uint8)

    def check_reading(
        self, accused: Accused, codebook: Codebook, live: Sequence[LiveLabel]
    ) -> None:
        """Check that the accused's slot keys read each live label as is claimed."""
        for opening, shown, one in zip(self._openings, accused.bits, live, strict=True):
            key = decode_base64(shown.key, what="slot key", length=SLOT_KEY_BYTES)
            if not opening.has(shown.bit, key):
                raise EvidenceError(
                    f"The slot key of {accused.subject!r} at slot {opening.slot} is wrong."
                )
            if codebook.read_label(one.label, shown.bit, one.key, key) != one.classes[shown.bit]:
                raise EvidenceError(
                    f"{accused.subject!r} does not read label {one.label} as is claimed."
                )

    def leaked_bits(self, statement: Statement) -> tuple[np.ndarray, int]:
        """Which of each slot's two keys leaked.

        Returns:
            (int8 `[n]`: 0, 1, or -1 for neither; how many numbers of slots could be shown).
        """
        leaves = _leaves(statement.leaked_leaves, self.count, "leaked_leaves")
        choices = {*LEAKED_COUNTS, self.count}
        chosen = slots_to_show(b"".join(leaves), len(self.numbers))
        if len(self.numbers) not in choices or self.numbers != chosen:
            raise EvidenceError("The leaked slot keys that are shown are not those to be shown.")
        if len(statement.leaked) != len(self.numbers):
            raise EvidenceError("The leaked slot keys are not shown completely.")
        bits = []
        for opening, text in zip(self._openings, statement.leaked, strict=True):
            key = decode_base64(text, what="leaked slot key") if text else b""
            if leaked_leaf(opening.slot, key) != leaves[opening.slot]:
                raise EvidenceError(f"The leaked slot key of slot {opening.slot} is another one.")
            bits.append(next((v for v in (0, 1) if opening.has(v, key)), -1))
        return np.array(bits, np.int8), len(choices)


def _leaves(text: str, count: int, what: str) -> list[bytes]:
    return split_bytes(decode_base64(text, what=what, length=LEAF_BYTES * count), LEAF_BYTES)


def _slot_opening(shown: ShownSlot) -> SlotOpening:
    return SlotOpening(
        shown.slot,
        shown.threshold,
        decode_base64(shown.blind, what="blind", length=BLIND_BYTES),
        decode_base64(shown.digest_0, what="digest_0", length=LEAF_BYTES),
        decode_base64(shown.digest_1, what="digest_1", length=LEAF_BYTES),
    )
