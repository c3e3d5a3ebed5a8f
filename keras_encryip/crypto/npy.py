"""NumPy's file format, read without trust."""

import math
import warnings
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy


def load_npy(file: BinaryIO, size: int) -> np.ndarray:
    """The array at a file's position, if all of it is there; of numbers, booleans or text.

    `np.load` would first make room for whatever the header says.

    Args:
        file: at the beginning of an array.
        size: bytes of the whole file.

    Raises:
        Exception: of any kind, if there is no such array: catch `errors.DAMAGED`.
    """
    start = file.tell()
    with warnings.catch_warnings():  # about headers that Python 2 wrote
        warnings.simplefilter("ignore")
        version = npy.read_magic(file)
        first = version == (1, 0)
        header, length = file.tell(), int.from_bytes(file.read(2 if first else 4), "little")
        if length > size:
            raise ValueError("Its header is longer than the file.")
        file.seek(header)
        read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("It holds pickled objects.")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
            raise ValueError("It is shorter than its header says.")
        file.seek(start)
        return np.asarray(np.load(file, allow_pickle=False))
