"""Digests that bind an owner to what was released, before anything leaked."""

from collections.abc import Sequence

import numpy as np
from Crypto.Hash import SHA256


def fingerprint_commitment(key: bytes) -> str:
    """SHA-256, in hexadecimal, of a domain tag and a recipient's fingerprint key."""
    return SHA256.new(b"encryip fingerprint key v1\0" + key).hexdigest()


def kernels_digest(kernels: Sequence[np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of a model's kernels in order: shapes, and values as float32."""
    digest = SHA256.new(b"encryip kernels v1\0")
    for kernel in kernels:
        digest.update(repr(kernel.shape).encode() + b"\0")
        digest.update(np.ascontiguousarray(kernel, "<f4").tobytes())
    return digest.hexdigest()
