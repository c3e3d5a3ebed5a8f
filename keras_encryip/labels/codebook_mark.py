"""The codebook's mark in exported outputs: it tells one version's answers from another's.

Exported confused labels are multiples of 2⁻²⁴ in their first columns, and the last bits of these
multiples say whose they are: half of them that there is a mark, half of them the codebook's id.
That moves a probability by 2⁻²⁴ at most (by 2⁻²⁰ if N < 64), and needs no second output. Float32
keeps it, and so does JSON; who converts or rounds outputs loses it, and nothing is said then.
"""

import math
from hashlib import sha256
from typing import Final

import numpy as np

UNIT: Final = 2.0**-24
NAME: Final = "keras_encryip_mark"
"""Of the constant in exported graphs."""

_DOMAIN: Final = b"keras_encryip codebook mark"
_BITS: Final = 64
_MOST_BITS: Final = 4
_LEAST_LABELS: Final = _BITS // _MOST_BITS


class CodebookMark:
    """Of one codebook.

    Args:
        codebook_id: 16 bytes.
        num_labels: N.

    Attributes:
        columns: how many of the outputs carry it: the first; 0 if N < 16.
        modulus: multiples of 2⁻²⁴ are marked modulo this power of two, 2 … 16.
        residues: float32 `[columns]`, the marks.

    Example:
    >>> mark = CodebookMark(bytes(16), num_labels=100)
    >>> mark.columns, mark.modulus
    (64, 2)
    >>> outputs = np.full((1, 100), 0.01, np.float32)
    >>> mark.is_of_another(outputs), mark.is_of_another(mark.put(outputs))
    (False, False)
    >>> CodebookMark(bytes(15) + b"x", 100).is_of_another(mark.put(outputs))
    True
    """

    def __init__(self, codebook_id: bytes, num_labels: int) -> None:
        bits = min(_MOST_BITS, math.ceil(_BITS / num_labels))
        self.modulus = 1 << bits
        self.columns = math.ceil(_BITS / bits) if num_labels >= _LEAST_LABELS else 0
        self._constant = math.ceil(self.columns / 2)
        parts = (
            (_DOMAIN, self._constant),
            (_DOMAIN + codebook_id, self.columns - self._constant),
        )
        residues = [
            int.from_bytes(sha256(seed).digest()) >> 256 - bits * (i + 1) & self.modulus - 1
            for seed, count in parts
            for i in range(count)
        ]
        self.residues = np.array(residues, np.float32)

    def put(self, outputs: np.ndarray) -> np.ndarray:
        """Marked outputs, float32 `[..., N]`: what the exported graph does."""
        marked = outputs[..., : self.columns] / np.float32(UNIT) - self.residues
        marked = self.modulus * np.maximum(np.round(marked / self.modulus), 0) + self.residues
        marked -= self.modulus * (marked > 1 / UNIT)
        return np.concatenate([marked * np.float32(UNIT), outputs[..., self.columns :]], -1)

    def is_of_another(self, outputs: np.ndarray) -> bool:
        """Whether any row of floats `[..., N]` carries the mark of another codebook."""
        if not self.columns:
            return False
        units = outputs[..., : self.columns].astype(np.float32).reshape(-1, self.columns) / UNIT
        as_here = units % self.modulus == self.residues
        whole = units[:, self._constant :] % 1 == 0
        marked = as_here[:, : self._constant].all(1) & whole.all(1)
        return bool((marked & ~as_here.all(1)).any())
