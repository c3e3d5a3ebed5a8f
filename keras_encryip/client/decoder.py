"""Turns confused labels into class probabilities, with numpy alone."""

import os
from collections.abc import Iterable
from typing import Final

import numpy as np

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, ForeignKeyError, WrongModelError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.responses import EXTRA_WORDS, open_responses
from keras_encryip.formats.version_folder import read_codebook, version_number
from keras_encryip.labels.ciphertext import LabelCiphertext, ciphertext_label
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.codebook_mark import CodebookMark

# Up to here a product with a 0/1 matrix beats adding up sorted columns (benchmarks/decode.py).
_MAX_DENSE_CLASSES: Final = 512
_MAX_DENSE: Final = 1 << 22
_CHUNK_ELEMENTS: Final = 1 << 22

SUM_TOLERANCE: Final = 0.01
NEGATIVE_TOLERANCE: Final = 0.001
"""How far the outputs of one input may be from 1 in sum, and a single one below 0."""


class Decoder(Secret):
    """Reads the outputs of one protected model with one user's key.

    Get one with `Decoder.open`. It holds the key's decode table, so it cannot be
    pickled; open one per process.

    Attributes:
        model: the model's name.
        key_id: of the user, 16 hexadecimal digits.
        class_names: list of K names.
        num_labels: N, the model's number of outputs.
        version: the number of the version folder that it was opened from, or `None`.

    Example:
    >>> decoder = Decoder.open(folder / "digits" / "1", folder / "alice.keybundle", "correct horse")
    >>> decoder.probabilities(confused).shape
    (3, 10)
    >>> decoder.names(confused)
    ['seven', 'two', 'one']
    """

    __slots__ = (
        "_codebook",
        "_mark",
        "_matrix",
        "_order",
        "_present",
        "_response_key",
        "_starts",
        "_table",
        "class_names",
        "key_id",
        "model",
        "num_labels",
        "version",
    )

    def __init__(
        self,
        codebook: Codebook,
        metadata: ModelMetadata,
        table: np.ndarray,
        key_id: str,
        response_key: bytes,
        version: int | None = None,
    ) -> None:
        self.version = version
        self.model = metadata.model
        self.class_names = list(metadata.class_names)
        self.num_labels = codebook.num_labels
        self._codebook = codebook
        self._mark = CodebookMark(codebook.codebook_id, codebook.num_labels)
        self.key_id = key_id
        self._response_key = response_key
        self._table = table
        self._matrix: np.ndarray | None = None
        classes = len(self.class_names)
        if classes <= _MAX_DENSE_CLASSES and self.num_labels * classes <= _MAX_DENSE:
            self._matrix = (table[:, None] == np.arange(classes)).astype(np.float32)
        self._order = np.argsort(table, kind="stable")
        # A class without a confused label has no run, and probability 0.
        self._present, self._starts = np.unique(table[self._order], return_index=True)

    def _describe(self) -> str:
        return f"model={self.model!r} key_id={self.key_id}"

    @classmethod
    def open(
        cls,
        model_dir_or_codebook: str | os.PathLike[str] | Codebook,
        bundle: str | os.PathLike[str] | KeyBundle,
        passphrase: str | None = None,
        private_key: X25519PrivateKey | None = None,
    ) -> "Decoder":
        """Open a model's outputs with a key bundle.

        Args:
            model_dir_or_codebook: an exported version folder, a `codebook.json`, or a
                `Codebook` already read.
            bundle: path of a key bundle, or one already read.
            passphrase: opens the bundle.
            private_key: the user's own, opens a bundle that was made to its public key.

        Raises:
            ForeignKeyError: the bundle is of another authority than the model.
            RevokedKeyError: the key was revoked before this version was exported.
            ExpiredKeyError: the bundle is outside its dates.
            WrongModelError: the bundle is not meant for this model.
            KeyRefusedError: the bundle lacks the role `read`, or was made to another public key.
            ArgumentError: not one of passphrase and private key was passed, as the bundle needs.
            PassphraseError, FormatError, SignatureError: as they say.

        Example:
        >>> bundle = folder / "alice.keybundle"
        >>> decoder = Decoder.open(folder / "digits" / "1", bundle, passphrase="correct horse")
        >>> decoder.model, decoder.version, decoder.num_labels
        ('digits', 1, 104)
        """
        if not isinstance(bundle, KeyBundle):
            bundle = KeyBundle.read(bundle)
        codebook, version = model_dir_or_codebook, None
        if not isinstance(codebook, Codebook):
            version = version_number(codebook)
            codebook = read_codebook(codebook)
        if codebook.authority != bundle.authority:
            raise ForeignKeyError(
                f"Key bundle {bundle.header.key_id} was issued by another authority "
                f"({bundle.header.issuer_name!r}) than the one that made this model."
            )
        codebook.verify(bundle.issuer)
        bundle.check_dates()
        key = bundle.unlock(passphrase, private_key).reader
        metadata, table, response_key = codebook.open(key)
        if not bundle.allows(metadata.model):
            raise WrongModelError(
                f"Key bundle {bundle.header.key_id} is for model(s) "
                f"{', '.join(bundle.header.scope)}, not for {metadata.model!r}."
            )
        return cls(codebook, metadata, table, key.key_id, response_key, version)

    def secret_table(self) -> np.ndarray:
        """int32 `[N]`: the class, 0 … K−1, of each confused label, to this key. Secret.

        Example:
        >>> table = decoder.secret_table()
        >>> table.shape, table.dtype, int(table.max())
        ((104,), dtype('int32'), 9)
        """
        return self._table.copy()

    def probabilities(self, confused: np.ndarray, *, quantised: bool = False) -> np.ndarray:
        """Class probabilities: the sum over each class's confused labels.

        Args:
            confused: floats `[..., N]`, any leading axes; or integers `[..., N + 10]`, the
                encrypted responses of an export with `responses="encrypted"`.
            quantised: take outputs that a runtime with few bits has rounded, whatever they add
                up to. Otherwise they must be at least -0.001, and 1 ± 0.01 in sum.

        Returns:
            `[..., K]`, float64 for float64 input, else float32.

        Raises:
            ArgumentError: another shape or type, NaN, infinite, or no probabilities.
            WrongModelError: the outputs are of another version of the model. That is noticed
                where nothing has rounded them.
            SignatureError: an encrypted response was changed, or is of another version.

        Example:
        >>> confused.shape, confused.dtype
        ((3, 104), dtype('float32'))
        >>> decoded = decoder.probabilities(confused)
        >>> decoded.shape, decoded.dtype, decoded.sum(1).round(3).tolist()
        ((3, 10), dtype('float32'), [1.0, 1.0, 1.0])
        """
        confused = np.asarray(confused)
        if np.issubdtype(confused.dtype, np.integer) and confused.shape[-1:] == (
            self.num_labels + EXTRA_WORDS,
        ):
            confused = open_responses(
                confused, self._response_key, self._codebook.codebook_id, self.num_labels
            )
        if confused.ndim == 0 or confused.shape[-1] != self.num_labels:
            raise ArgumentError(
                f"`confused` must have a last axis of {self.num_labels}, the outputs of model "
                f"{self.model!r}. Received: confused.shape={confused.shape}"
            )
        if not np.issubdtype(confused.dtype, np.floating):
            raise ArgumentError(
                "`confused` must hold the model's floating-point outputs. "
                f"Received: confused.dtype={confused.dtype}"
            )
        dtype = np.float64 if confused.dtype == np.float64 else np.float32
        rows = confused.reshape(-1, self.num_labels)
        decoded = np.empty((len(rows), len(self.class_names)), dtype)
        step = max(1, _CHUNK_ELEMENTS // self.num_labels)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step].astype(dtype, copy=False)
            self._check(chunk, start, quantised)
            if self._matrix is not None:
                np.matmul(chunk, self._matrix, out=decoded[start : start + step])
            else:  # a dense matrix would be large: sort the columns by class, add up runs
                runs = np.add.reduceat(chunk[:, self._order], self._starts, axis=1)
                decoded[start : start + step] = 0
                decoded[start : start + step, self._present] = runs
        return decoded.reshape(*confused.shape[:-1], len(self.class_names))

    def _check(self, rows: np.ndarray, first: int, quantised: bool) -> None:
        """Refuse what no model has for outputs, and what another version of this one said."""
        with np.errstate(all="ignore"):
            sums = rows.sum(1, dtype=np.float64)
        wrong, why = ~np.isfinite(sums), "hold NaN or infinity"
        if not quantised and not wrong.any():
            wrong = np.abs(sums - 1) > SUM_TOLERANCE
            wrong |= rows.min(1, initial=0) < -NEGATIVE_TOLERANCE
            why = "be no probabilities. Pass `quantised=True` for a runtime that rounds them"
        if wrong.any():
            row = int(wrong.argmax())
            raise ArgumentError(
                f"`confused` must hold a model's outputs, at least 0 and 1 in sum. Row "
                f"{first + row} seems to {why}. Received: a row with the sum {sums[row]:.6g} and "
                f"the least value {rows[row].min():.6g}"
            )
        if self._mark.is_of_another(rows):
            raise WrongModelError(
                f"The outputs are of another version of model {self.model!r}. Open the codebook "
                "of the version that is served, or ask the server for this one."
            )

    def labels(self, confused: np.ndarray, *, quantised: bool = False) -> np.ndarray:
        """The most probable class: int64 `[...]`, 0 … K−1.

        Args:
            confused: as for `probabilities`.
            quantised: as for `probabilities`.

        Raises:
            ArgumentError, WrongModelError, SignatureError: as `probabilities`.

        Example:
        >>> decoder.labels(confused)
        array([7, 2, 1])
        """
        labels: np.ndarray = self.probabilities(confused, quantised=quantised).argmax(-1)
        return labels

    def names(self, confused: np.ndarray, *, quantised: bool = False) -> list[str]:
        """The names of `labels(confused)`: a list nested like its leading axes, or one name.

        Args:
            confused: as for `probabilities`.
            quantised: as for `probabilities`.

        Raises:
            ArgumentError, WrongModelError, SignatureError: as `probabilities`.

        Example:
        >>> decoder.names(confused)
        ['seven', 'two', 'one']
        >>> decoder.names(confused[0])
        'seven'
        """
        labels = self.labels(confused, quantised=quantised)
        names: list[str] = np.array(self.class_names, object)[labels, ...].tolist()
        return names

    def top_k(
        self, confused: np.ndarray, k: int = 5, *, quantised: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable classes, best first.

        Args:
            confused: as for `probabilities`.
            k: 1 … K.
            quantised: as for `probabilities`.

        Returns:
            (int64 `[..., k]` classes, `[..., k]` probabilities of the dtype of `probabilities`).

        Raises:
            ArgumentError: k is out of range; or as `probabilities`.
            WrongModelError, SignatureError: as `probabilities`.

        Example:
        >>> classes, probabilities = decoder.top_k(confused, k=2)
        >>> classes[:, 0], probabilities.shape
        (array([7, 2, 1]), (3, 2))
        """
        if not 1 <= k <= len(self.class_names):
            raise ArgumentError(f"`k` must be in 1 … {len(self.class_names)}. Received: k={k}")
        decoded = self.probabilities(confused, quantised=quantised)
        best = np.argsort(-decoded, axis=-1, kind="stable")[..., :k]
        return best, np.take_along_axis(decoded, best, -1)

    def decrypt(self, ciphertexts: Iterable[bytes]) -> np.ndarray:
        """Read outputs of the `encrypted_label` signature: int64 `[n]` of classes.

        Args:
            ciphertexts: n outputs `ciphertext_bytes` of the signature.

        Raises:
            FormatError: not a label ciphertext.
            WrongModelError: it was not made with this model version's codebook.

        Example:
        >>> decoder.decrypt(ciphertexts)
        array([7, 2, 1])
        """
        labels = []
        for data in ciphertexts:
            label = ciphertext_label(data)  # first: that spares decoding the header's points
            if label >= self.num_labels or self._codebook.ciphertext(label) != data:
                LabelCiphertext.from_bytes(bytes(data))  # malformed bytes say so
                raise WrongModelError(
                    f"A ciphertext does not belong to this version of model {self.model!r}. "
                    "Open the codebook it was made with, or use KeyBundle.decrypt."
                )
            labels.append(label)
        return self._table[np.array(labels, np.int64)].astype(np.int64)
