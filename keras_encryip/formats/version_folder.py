"""An exported version folder: where its codebook is, and how it is read."""

import os
from pathlib import Path
from typing import Final

from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.labels.codebook import FILE_NAME, MAX_CODEBOOK_BYTES, Codebook

GRAPH: Final = "saved_model.pb"
"""What makes a folder a SavedModel."""

WARMUP: Final = Path("assets.extra") / "tf_serving_warmup_requests"
"""Where TF Serving looks for requests to begin with."""

MAX_VERSION: Final = (1 << 63) - 1

ASSETS: Final = Path("assets.extra") / "encryip"
"""Where an exported model keeps its codebook and manifest."""


def read_codebook(model_dir_or_codebook: str | os.PathLike[str]) -> Codebook:
    """Read `codebook.json`, given its path or that of an exported version folder."""
    path = Path(model_dir_or_codebook)
    if os.path.isdir(path):  # and not `is_dir`, which raises what is no error of ours
        path = path / ASSETS / FILE_NAME
    return Codebook.from_bytes(read_bounded(path, what="codebook", max_bytes=MAX_CODEBOOK_BYTES))


def version_number(model_dir_or_codebook: str | os.PathLike[str]) -> int | None:
    """The number of the version folder that a path is of or in; `None` if it has none.

    Model servers call a version by the name of its folder.
    """
    path = Path(model_dir_or_codebook)
    if not os.path.isdir(path):
        if path.parts[-3:-1] != ASSETS.parts:
            return None
        path = path.parents[len(ASSETS.parts)]
    return number_of(path.absolute().name)


def number_of(name: str) -> int | None:
    """The number of the version whose folder has this name; `None` if it is no version number."""
    digits = name.isascii() and name.isdigit() and name == str(int(name))
    return int(name) if digits and int(name) <= MAX_VERSION else None


def versions_in(directory: Path) -> dict[int, Path]:
    """The SavedModels in a folder of versions, by number; or the one that the folder itself is."""
    if os.path.isfile(directory / GRAPH):
        number = version_number(directory)
        return {1 if number is None else number: directory}
    folders = (graph.parent for graph in directory.glob(f"*/{GRAPH}"))
    numbered = ((number_of(folder.name), folder) for folder in folders)
    return {number: folder for number, folder in numbered if number is not None}
