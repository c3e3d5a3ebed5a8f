"""A new version of an exported folder, its outputs in another order: revocation in the field."""

import shutil
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_encryip.authority.authority import Authority, check_authority
from keras_encryip.errors import ArgumentError, ExportError
from keras_encryip.export.checkpoints import (
    Swaps,
    head_names,
    read_graph,
    swap_constants,
    text,
    write_checkpoint,
    write_graph,
)
from keras_encryip.export.checks import EXACT, Answers, difference, probes, warn_of_name
from keras_encryip.export.saved_model import complete_version
from keras_encryip.formats.atomic_files import make_new_folder, read_bounded
from keras_encryip.formats.lock import is_locked, read_lock
from keras_encryip.formats.manifest import (
    FILE_NAME,
    MAX_MANIFEST_BYTES,
    is_beside,
    verify_export,
)
from keras_encryip.formats.version_folder import ASSETS, GRAPH, WARMUP, read_codebook
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.codebook_mark import CodebookMark
from keras_encryip.tracing.checkpoint import Checkpoint

_WRITTEN_ANEW: Final = (GRAPH, "variables", ASSETS.parts[0], "fingerprint.pb")
"""Of a version folder; the last, which is optional, has digests of the old graph."""


def rotate_codebook(
    source: str | PathLike[str], directory: str | PathLike[str], *, authority: Authority
) -> None:
    """Shut out who was revoked: give an exported folder a new version, without training.

    The new version has the outputs of the old one in another order, random and secret: the
    columns of its head are permuted. It has a codebook of its own under the
    revocations of now, and a response key of its own if there was one. So neither a revoked
    user's key nor a decode table kept from before reads it. Nobody else's key changes; they
    need the new version's codebook. The mark of a recipient and the trace inputs stay.

    What this cannot do: whoever holds the old weights and the old decode table goes on using
    them, and can match the columns of two versions (docs/guides/host.md).

    Args:
        source: a version folder that `export_saved_model` or this function made, such as
            `"served/digits/1"`.
        directory: the new version folder, such as `"served/digits/2"`. Must not exist; it
            appears whole or not at all, so that a running server may watch for it.
        authority: the one that exported `source`.

    Raises:
        ExportError: `source` fails verification, or the new version does not give its outputs.
        ForeignKeyError: another authority signed `source`.
        LedgerError: `authority` did not export `source`.

    Example:
    >>> rotate_codebook(folder / "digits" / "1", folder / "digits" / "5", authority=authority)
    >>> decoder = Decoder.open(folder / "digits" / "5", folder / "alice.keybundle", "correct horse")
    >>> decoder.version, decoder.model
    (5, 'digits')
    """
    for name, path in (("source", source), ("directory", directory)):
        if not isinstance(path, str | PathLike):
            raise ArgumentError(
                f"`{name}` must be the path of a version folder. Received: {type(path).__name__}"
            )
    check_authority(authority)
    old, target = Path(source), Path(directory)
    if target.resolve().is_relative_to(old.resolve()):
        raise ArgumentError(
            f"`directory` must not be inside of what is rotated. Received: directory={directory!r}"
        )
    warn_of_name(target)
    keys, exports, store = authority.keys, authority.export_store, authority.model_store
    manifest = verify_export(old, issuer=keys.issuer)
    warmed = any(entry.path == WARMUP.as_posix() for entry in manifest.files)
    signed = read_bounded(old / ASSETS / FILE_NAME, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    before = read_codebook(old)
    exports.exported(signed)  # refused before anything is drawn
    graph = read_graph(old)
    hosted = _answers_encrypted(graph)
    old_lock = read_lock(old) if is_locked(old) else None

    def fill(draft: Path) -> None:
        after, moved = store.reorder(before)
        response_keys = [keys.response_key(c) if hosted else None for c in (before, after)]
        lock, place = None, None if old_lock is None else old_lock.key_file
        opening: list[bytes | None] = [None, None]
        if old_lock is not None:
            lock, key = store.make_lock(after, old_lock.key_file)
            opening = [old_lock.content_key(keys.run_master), key]
        _copy_rest(old, draft)
        if warmed:
            (draft / WARMUP).parent.mkdir()
            shutil.copyfile(old / WARMUP, draft / WARMUP)
        if not swap_constants(graph, _swaps(before, after, response_keys, locked=bool(lock))):
            raise ExportError(
                f"The graph of {str(old)!r} is not one that `export_saved_model` wrote."
            )
        write_graph(graph, draft)
        _write_variables(old, draft, moved, response_keys, opening)
        answers = [
            Answers(folder, codebook, key, place, unlocking)
            for folder, codebook, key, unlocking in zip(
                (old, draft), (before, after), response_keys, opening, strict=True
            )
        ]
        _check_rotated(answers[0], answers[1], moved)
        verify_export(old, issuer=keys.issuer)  # what was copied is still what was verified
        written = complete_version(draft, after, keys, hosted=hosted, lock=lock)
        exports.add_reordered_export(after, written, folder=target.name, source=signed, lock=lock)

    make_new_folder(target, fill, mode=0o700 if hosted and old_lock is None else 0o777)


# --- writing -----------------------------------------------------------------------------


def _answers_encrypted(graph: Any) -> bool:
    return any("encrypted" in m.signature_def["serving_default"].outputs for m in graph.meta_graphs)


def _copy_rest(old: Path, draft: Path) -> None:
    for path in old.iterdir():
        if path.name in _WRITTEN_ANEW or is_beside(path.name):
            continue
        if path.is_dir():
            shutil.copytree(path, draft / path.name, ignore=_beside)
        else:
            shutil.copyfile(path, draft / path.name)


def _beside(_: str, names: list[str]) -> list[str]:
    return [name for name in names if is_beside(name)]


def _swaps(before: Codebook, after: Codebook, keys: list[bytes | None], *, locked: bool) -> Swaps:
    """What the graphs of `export_saved_model` hold of a codebook and of its response key."""
    if keys[0] is None or keys[1] is None:
        marks = [CodebookMark(each.codebook_id, each.num_labels) for each in (before, after)]
        return [
            *([(marks[0].residues, marks[1].residues)] if marks[0].columns else []),
            (text(before.ciphertext_prefix), text(after.ciphertext_prefix)),
            (
                np.array(before.ciphertext_suffixes, object),
                np.array(after.ciphertext_suffixes, object),
            ),
        ]
    both = [(before.codebook_id, after.codebook_id)]
    if not locked:  # else it is a variable
        both += [(keys[0][i : i + 16], keys[1][i : i + 16]) for i in (0, 16)]
    return [(np.frombuffer(old, "<u4"), np.frombuffer(new, "<u4")) for old, new in both]


def _write_variables(
    old: Path,
    draft: Path,
    moved: np.ndarray,
    response_keys: list[bytes | None],
    opening: list[bytes | None],
) -> None:
    """The checkpoint with the head's columns at their new numbers, and the new response key."""
    checkpoint = Checkpoint(old)
    head = head_names(checkpoint, len(moved))
    if not head:
        raise ExportError(f"{str(old)!r} has no head `confused_labels` of {len(moved)} outputs.")
    if opening[0] is None:
        values = {name: checkpoint.read(name) for name in head}
    else:
        values = checkpoint.unlocked([opening[0]])
    changed = {n: v[..., np.argsort(moved)] if n in head else v for n, v in values.items()}
    before, after = (np.frombuffer(key or b"", "<u4") for key in response_keys)
    for name, value in values.items():
        if _is_key(value, before):
            changed[name] = after
    write_checkpoint(checkpoint, draft, changed=changed, key=opening[1])


def _is_key(value: np.ndarray, key: np.ndarray) -> bool:
    """Whether a variable is the response key."""
    return key.size > 0 and value.dtype == key.dtype and np.array_equal(value, key)


def _check_rotated(old: Answers, new: Answers, moved: np.ndarray) -> None:
    """Ask both versions the same."""
    for feed in probes(old):
        before, after = old.confused(feed), new.confused(feed)
        if not difference(after[..., moved], before) <= EXACT:
            raise ExportError(
                "The new version does not give the outputs of the old one; nothing was kept."
            )
        if not new.ciphertexts_fit(feed):
            raise ExportError("The new version gives other ciphertexts than its codebook's.")
