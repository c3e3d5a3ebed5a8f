"""How likely each slot's bit is 1: the density that codewords are drawn with."""

import numpy as np


def bias_thresholds(words: np.ndarray) -> np.ndarray:
    """τ for each slot: a user's bit there is 1 with probability τ / 2³².

    Args:
        words: uint32 `[M]`, uniform and independent.

    Returns:
        uint32 `[M]`.
    """
    return np.full(words.shape, 1 << 31, np.uint32)
