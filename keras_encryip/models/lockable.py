"""A Keras model with a codebook: what unlocks it, what it answers, which weights are its own."""

import sys
import textwrap
from collections.abc import Callable
from os import PathLike
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from keras.src.utils.io_utils import print_msg

from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, LockedModelError, WrongModelError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelOwner
from keras_encryip.models.adapt import fit_training_state, needs_data
from keras_encryip.models.conventions import check_compiled, ignored_class, of_one_output
from keras_encryip.models.data import single_labels
from keras_encryip.models.facts import facts
from keras_encryip.models.secrets import UnlockedSecrets, check_owner
from keras_encryip.models.step import Running
from keras_encryip.models.teacher import as_teacher


class Lockable(keras.Model):
    """The part of `ProtectedModel` that knows of owners, users and codebooks.

    Attributes:
        codebook: canonical JSON. Public.
        num_classes: K.
        strategy, copies: how homophones are chosen.
        output_name: what the classifier calls its output.
    """

    codebook: str
    num_classes: int
    strategy: str
    copies: int
    output_name: str
    _secrets: UnlockedSecrets | None
    _running: Running

    def unlock(
        self,
        *,
        authority: ModelOwner | None = None,
        bundle: str | PathLike[str] | KeyBundle | None = None,
        passphrase: str | None = None,
        private_key: X25519PrivateKey | None = None,
        teacher: keras.Model | None = None,
    ) -> Self:
        """Make a loaded model train and evaluate again.

        Args:
            authority: the owner's; restores everything but the teacher.
            bundle: a user's key bundle (path or object). `evaluate` then shows what that
                user gets; `fit` trains on your loss alone, without confusion and traces.
            passphrase, private_key: what opens the bundle, as for `Decoder.open`.
            teacher: the original trained classifier, to go on distilling from it.

        Returns:
            The model itself.

        Raises:
            LedgerError: the authority did not protect this model.
            KeyRefusedError: the bundle may not read it.
            PassphraseError: wrong passphrase.
            ArgumentError: not one of `authority` and `bundle` was passed.

        Example:
        >>> loaded = keras.models.load_model(folder / "digits.keras")
        >>> loaded.is_locked()
        True
        >>> loaded.unlock(bundle=folder / "alice.keybundle", passphrase="correct horse").is_locked()
        False
        """
        if (authority is None) == (bundle is None):
            raise ArgumentError("Pass either `authority` or `bundle` to `unlock`.")
        codebook = Codebook.from_bytes(self.codebook.encode("ascii"))
        if bundle is not None:
            decoder = Decoder.open(codebook, bundle, passphrase, private_key)
            secrets = UnlockedSecrets(decoder.secret_table(), self.num_classes)
        else:
            secrets = self._secrets_of(check_owner(authority), codebook.codebook_id)
        if teacher is not None:
            secrets.teacher = as_teacher(teacher, self.num_classes)
        if self._secrets is not None:
            secrets.original = self._secrets.original
        self._secrets = secrets
        self._forget_traces()
        return self

    def _secrets_of(self, owner: ModelOwner, codebook_id: bytes) -> UnlockedSecrets:
        record = owner.model_store.model_of(codebook_id)
        assignment = record.assignment
        secrets = UnlockedSecrets(assignment.classes, self.num_classes, record, owner)
        if secrets.training is None and not needs_data(self.strategy, assignment, self.copies):
            secrets.training = fit_training_state(
                None, None, strategy=self.strategy, assignment=assignment, copies=self.copies
            )
        return secrets

    def lock(self) -> Self:
        """Forget the assignment, trace inputs and teacher. Returns the model itself.

        Example:
        >>> model.lock().is_locked()
        True
        >>> model.evaluate(x, y)
        Traceback (most recent call last):
        keras_encryip.errors.LockedModelError: Model 'digits' is locked: ...
        """
        self._secrets = None
        self._forget_traces()
        return self

    def is_locked(self) -> bool:
        """Whether the model needs `unlock` before it can train or evaluate.

        Example:
        >>> model.is_locked(), model.lock().is_locked()
        (False, True)
        """
        return self._secrets is None

    def decode(self, confused: Any) -> np.ndarray:
        """Class probabilities of confused labels.

        Args:
            confused: float `[..., N]`, as the model gives them.

        Returns:
            Array of float32 `[..., K]`.

        Raises:
            LockedModelError: the model is not unlocked.

        Example:
        >>> confused = model.predict(x[:3], verbose=0)
        >>> confused.shape, model.decode(confused).shape
        ((3, 104), (3, 10))
        """
        return np.asarray(
            ops.convert_to_numpy(self._unlocked().decode(ops.convert_to_tensor(confused)))
        )

    def _unlocked(self) -> UnlockedSecrets:
        if self._secrets is None:
            raise LockedModelError(
                f"Model {self.name!r} is locked: it predicts confused labels, and cannot be "
                "trained or evaluated. Unlock it with `model.unlock(authority=...)` or "
                "`model.unlock(bundle=..., passphrase=...)`."
            )
        return self._secrets

    def _forget_traces(self) -> None:
        """Traced train and test functions hold the old secrets as constants."""
        self.train_function = None
        self.test_function = None

    # --- what it answers ------------------------------------------------------

    @property
    def ignored_class(self) -> int | None:
        """The label that the loss ignores, if it ignores one (`ignore_class`); else `None`.

        Example:
        >>> loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
        >>> model.compile("adam", loss)
        >>> model.ignored_class
        -1
        """
        return ignored_class(getattr(self, "loss", None))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`, with losses and metrics of probabilities.

        Raises:
            ArgumentError: one is made for scores, `from_logits=True`.

        Example:
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        Traceback (most recent call last):
        keras_encryip.errors.ArgumentError: A protected model decodes to probabilities: ...
        """
        given, named = of_one_output(args, kwargs, self.output_name)
        super().compile(*given, **named)
        check_compiled(self)
        self._terms.reset()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As `keras.Model.compile_from_config`, which leaves out models with a `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and getattr(self, "optimizer", None) is not None:
            self.optimizer.build(self.trainable_variables)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`: confused labels, float32 `[n, ..., N]`. `decode` reads them.

        A locked model predicts, too. `keras.wrappers.SKLearnClassifier`, which wants classes, gets
        class probabilities.

        Example:
        >>> confused = model.predict(x[:3], verbose=0)
        >>> confused.shape, confused.sum(1).round(3).tolist()
        ((3, 104), [1.0, 1.0, 1.0])
        """
        confused = super().predict(x, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return self.decode(confused) if caller.startswith("keras.src.wrappers") else confused

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on decoded probabilities.

        Raises:
            LockedModelError: the model is not unlocked.

        Example:
        >>> results = model.evaluate(x, y, verbose=0, return_dict=True)
        >>> results["accuracy"] > 0.9
        True
        """
        self._unlocked()
        return super().evaluate(x, single_labels(y), *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`, on decoded probabilities.

        Raises:
            LockedModelError: the model is not unlocked.

        Example:
        >>> loss, accuracy = model.test_on_batch(x[:64], y[:64])
        >>> accuracy > 0.9
        True
        """
        self._unlocked()
        return super().test_on_batch(x, single_labels(y), *args, **kwargs)

    # --- what it is ------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<ProtectedModel name={self.name}, built={self.built}, {', '.join(facts(self))}>"

    def summary(
        self,
        line_length: int | None = None,
        positions: list[float] | None = None,
        print_fn: Callable[[str], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.summary`, and how the model is protected.

        That is N and K; and the homophones per class, their strategy and T, if its owner unlocked
        it. `print_fn` is called once more.

        Example:
        >>> model.lock().summary()
        Model: "digits"
        ...
         Protected as "digits": 104 confused labels for 10 classes, locked
        """
        super().summary(line_length, positions, print_fn, **kwargs)
        block = f'Protected as "{self.name}": {", ".join(facts(self))}'
        indent: dict[str, Any] = {"initial_indent": " ", "subsequent_indent": " "}
        (print_fn or print_msg)(textwrap.fill(block, line_length or 80, **indent))

    # --- weights ---------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        codebook = Codebook.from_bytes(self.codebook.encode("ascii"))
        store["codebook"] = np.frombuffer(codebook.codebook_id, np.uint8)

    def load_own_variables(self, store: Any) -> None:
        stored = {key: store[key] for key in store.keys()}  # noqa: SIM118 (no mapping)
        written = bytes(np.asarray(stored.pop("codebook", ()), np.uint8))
        codebook = Codebook.from_bytes(self.codebook.encode("ascii")).codebook_id
        if written != codebook:
            of = f"codebook {written.hex()}" if written else "no codebook, or by release 0.3"
            self._running.refusal = WrongModelError(
                f"These weights were trained for {of}, and model {self.name!r} has codebook "
                f"{codebook.hex()}: their confused labels stand for other classes. Load the whole "
                "model, keras.models.load_model('….keras'), instead of weights into a model that "
                "was protected anew."
            )
            raise self._running.refusal
        super().load_own_variables(stored)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; weights of another codebook are refused.

        Raises:
            WrongModelError: they are. As after any error, the model stays as it was.

        Example:
        >>> model.save_weights(folder / "digits.weights.h5")
        >>> model.load_weights(folder / "digits.weights.h5")
        >>> from keras_encryip import protect
        >>> other = protect(classifier, authority, name="other", homophones=4, trace_labels=64)
        >>> other.load_weights(folder / "digits.weights.h5")
        Traceback (most recent call last):
        keras_encryip.errors.WrongModelError: These weights were trained for codebook ...
        """
        before = [ops.convert_to_numpy(variable) for variable in self.variables]
        self._running.refusal = None
        failed: Exception | None = None
        try:
            super().load_weights(filepath, *args, **kwargs)
        except Exception as error:
            failed = error
        failed = self._running.refusal or failed  # Keras may go on after a refusal, or reword it
        if failed is not None:
            for variable, value in zip(self.variables, before, strict=True):
                variable.assign(value)
            raise failed
