"""Where an exported folder keeps its codebook."""

from pathlib import Path
from typing import Any

import pytest

from keras_encryip.errors import FormatError
from keras_encryip.formats import version_folder
from keras_encryip.formats.version_folder import ASSETS, read_codebook


def test_a_folder_or_the_file_itself(world: Any) -> None:
    for place in (world.model, str(world.model), world.codebook_file):
        assert read_codebook(place).to_bytes() == world.codebook.to_bytes()


def test_a_folder_without_a_codebook_is_named(tmp_path: Path) -> None:
    where = str(tmp_path / ASSETS / "codebook.json")
    with pytest.raises(FormatError, match=rf"Cannot read the codebook '{where}': No such file"):
        read_codebook(tmp_path)


def test_an_oversized_codebook_is_not_read(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_folder, "MAX_CODEBOOK_BYTES", 100)
    with pytest.raises(FormatError, match=r"codebook '.*' is too large: more than 100 bytes"):
        read_codebook(world.model)
