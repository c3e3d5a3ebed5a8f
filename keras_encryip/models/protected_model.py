"""The Keras model that answers in confused labels."""

import inspect
import warnings
from typing import Any, Self

import keras
import numpy as np

from keras_encryip.client.checks import check_count
from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.models.adapt import fit_training_state
from keras_encryip.models.backbone import features_shape, freeze, frozen
from keras_encryip.models.conventions import (
    check_settings,
)
from keras_encryip.models.data import (
    batches,
    check_labels,
    check_same_kind,
    class_indices,
    single_labels,
    with_one_label,
)
from keras_encryip.models.head import ConfusedLabels
from keras_encryip.models.homophones import AUTOMATIC
from keras_encryip.models.lockable import Lockable
from keras_encryip.models.own_steps import with_own_steps
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.start import check_start, start_head
from keras_encryip.models.step import (
    Running,
    Step,
    check_taught,
    guarded,
    mask_of,
    running,
    scores_of,
    shown,
    with_mask,
)
from keras_encryip.models.teach_traces import teach_traces
from keras_encryip.models.terms import TERMS, TermMetrics, with_terms


@keras.saving.register_keras_serializable(package="keras_encryip")
class ProtectedModel(Lockable):
    """A classifier that outputs confused labels. Make one with `protect`.

    `fit`, `evaluate`, losses, metrics, callbacks and class or sample weights work as
    on any Keras model: they see *decoded* class probabilities `(batch, K)`. Calling
    the model, `predict`, and everything saved or exported give confused labels
    `(batch, N)`.

    `loss` and `val_loss` are your own loss, with penalties, as of a plain classifier. Training
    follows the gradient of `(1−κ)·loss + κ·teacher_loss + confusion_weight·confusion_loss`, κ = 0
    without a teacher; penalties count in full. The logs and the history of training show
    `teacher_loss` (the distillation) and `confusion_loss` (the cross-entropy of the target
    confused label), each if there is one. When `fit` ends, the head learns the trace labels.

    Args:
        backbone: inputs → features.
        num_classes: K.
        num_labels: N.
        codebook: the codebook's canonical JSON. Public.
        strategy: how homophones are chosen, a key of `homophones.STRATEGIES`, or `"automatic"`.
        copies: homophones per cluster.
        confusion_weight: weight of the confused-label term, ≥ 0.
        teacher_weight: κ, 0 … 1; used only with a teacher.
        temperature: τ > 0 of the distillation.
        binary: whether losses and metrics see one probability, of class 1, `(batch, 1)`.
        head: further arguments of the `ConfusedLabels` layer.
        dtypes: of the inputs, flat; float32 by default.
        frozen: which parts of the backbone do not learn, as `backbone.frozen` says.
        output: what the classifier calls its output: `compile` takes dictionaries with this key.
        **kwargs: as `keras.Model`.

    Nothing secret is an argument, a weight, or an attribute that Keras looks at: a
    loaded model is *locked*, predicts confused labels, and refuses to train or
    evaluate until `unlock`.

    Weights know the codebook that they were trained for: others are refused.

    Example:
    >>> confused = model.predict(x[:3], verbose=0)
    >>> confused.shape, model.decode(confused).shape
    ((3, 104), (3, 10))
    >>> bool((model.decode(confused).argmax(1) == y[:3]).all())
    True
    """

    ATTRIBUTES = (
        "backbone",
        "num_classes",
        "num_labels",
        "codebook",
        "strategy",
        "copies",
        "confusion_weight",
        "teacher_weight",
        "temperature",
        "binary",
        "head",
        "dtypes",
        "output_name",
        "confused_labels",
    )
    """Its own, whatever a classifier's class calls so."""

    def __init__(
        self,
        backbone: keras.layers.Layer,
        num_classes: int,
        num_labels: int,
        codebook: str,
        *,
        strategy: str = AUTOMATIC,
        copies: int = 2,
        confusion_weight: float = 0.1,
        teacher_weight: float = 0.7,
        temperature: float = 2.0,
        binary: bool = False,
        head: dict[str, Any] | None = None,
        dtypes: list[str] | None = None,
        frozen: dict[str, list[int]] | None = None,
        output: str = "confused_labels",
        **kwargs: Any,
    ) -> None:
        keras.Model.__init__(self, **kwargs)
        check_settings(strategy, confusion_weight, teacher_weight, temperature)
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_labels = num_labels
        self.codebook = codebook
        self.strategy = strategy
        self.copies = check_count("copies", copies, 1)
        self.confusion_weight = confusion_weight
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.binary = binary
        self.head = dict(head or {})
        self.dtypes = dtypes
        self.output_name = output
        self._frozen = frozen
        self.confused_labels = ConfusedLabels(num_labels, name="confused_labels", **self.head)
        self._seed_generator = keras.random.SeedGenerator()
        self._secrets: UnlockedSecrets | None = None
        self._running = Running()
        self._terms = TermMetrics()

    # --- the model -------------------------------------------------------------

    def build(self, input_shape: Any) -> None:
        self.confused_labels.build(features_shape(self.backbone, input_shape, self.dtypes))
        self.built = True
        if self._frozen is not None:
            freeze(self.backbone, self._frozen)
        if self._secrets is not None and self._secrets.original is not None:
            start_head(self, self._secrets, input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        step = self._running.step
        if step is None:
            confused = self.confused_labels(self.backbone(inputs, training=training))
            return confused if training is False else guarded(confused)
        secrets = self._unlocked()
        if secrets.traces is not None:
            check_same_kind(secrets.traces.inputs.dtype, inputs.dtype)
        features = self.backbone(inputs, training=training)
        step.scores = with_mask(self.confused_labels.logits(features), mask_of(features))
        step.inputs, step.classes = inputs, secrets.class_scores(step.scores)
        return shown(step, self.binary)

    def train_step(self, data: Any) -> Any:
        """As `keras.Model.train_step`, or that of the classifier's class; the model decodes."""
        with running(self._running, training=True) as step:
            logs = super().train_step(with_one_label(data))
        check_taught(self, step)
        return {**logs, **self._terms.results(step.terms)}

    def test_step(self, data: Any) -> Any:
        """As `keras.Model.test_step`, or that of the classifier's class; the model decodes."""
        with running(self._running, training=False):
            return super().test_step(with_one_label(data))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The user's loss of decoded probabilities; in training, its gradient is that of all terms.

        Args:
            x: n samples.
            y: their labels.
            y_pred: outside of a training step, the confused labels given for `x`, `(n, N)`.
            sample_weight: one number a sample.
            training: whether the terms of training count.

        Returns:
            A scalar.

        Example:
        >>> confused = model(x[:8], training=False)
        >>> 0 < float(model.compute_loss(x[:8], y[:8], confused, training=False)) < 0.5
        True
        """
        secrets, step = self._unlocked(), self._running.step
        if step is None:
            scores = scores_of(y_pred)
            step = Step(training, x, scores, secrets.class_scores(scores))
            y_pred = shown(step, self.binary)
        given = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        loss = self._own_loss(given, training)
        if not (training and step.training) or secrets.training is None:
            step.taught = True
            return loss
        return with_terms(self, secrets, step, loss, y, sample_weight)

    def _own_loss(self, given: dict[str, Any], training: bool) -> Any:
        """As the classifier's class computes it."""
        method = super().compute_loss
        parameters = inspect.signature(method).parameters.values()
        names = {p.name for p in parameters}
        if "training" in names or any(p.kind is p.VAR_KEYWORD for p in parameters):
            given["training"] = training
        return method(**given)

    def get_metrics_result(self) -> dict[str, Any]:
        """As `keras.Model.get_metrics_result`; after training, with `confusion_loss` and
        `teacher_loss`."""
        shown_apart = self._terms.seen() if self._running.step is None else []
        return {**super().get_metrics_result(), **self._terms.results(shown_apart)}

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self._terms.reset()

    def _flatten_metrics_in_order(self, logs: dict[str, Any]) -> Any:
        """What `train_on_batch` returns without `return_dict`: as many numbers as for any model."""
        return super()._flatten_metrics_in_order({n: v for n, v in logs.items() if n not in TERMS})

    # --- training --------------------------------------------------------------

    def adapt(self, x: Any, y: Any = None) -> None:
        """Learn the homophones' clusters and make the trace inputs, once.

        `fit` does this by itself from its own data. Call it first for data that
        `fit` can only read once (a generator), or with a better sample. The result
        is kept sealed in the authority's ledger.

        Args:
            x: inputs `(n, …)`, a `tf.data.Dataset` or a `keras.utils.PyDataset` with labels;
                at most 20,000 samples are looked at.
            y: labels `(n,)` or one-hot `(n, K)`; `None` for a dataset.

        Raises:
            LockedModelError: the model is not unlocked with its authority.
            ArgumentError: labels out of range, or inputs that cannot be clustered.

        Example:
        >>> import keras_encryip as ke
        >>> model = ke.protect(classifier, authority, name="new", homophones=4, trace_labels=16)
        >>> model.adapt(x, y)
        >>> sorted(ke.ProtectionMetrics().measure(model))  # on the samples that it kept
        ['confusion', 'trace_labels_read']
        """
        secrets = self._unlocked()
        secrets.training = fit_training_state(
            x,
            y,
            strategy=self.strategy,
            assignment=secrets.assignment(),
            copies=self.copies,
            ignored=self.ignored_class,
            look=self._look,
            prepare=getattr(self, "preprocess_samples", None),
        )
        secrets.save_training()
        self._forget_traces()

    def _look(self, inputs: Any) -> None:
        """Compare with the classifier on real inputs, once, before they are trained on."""
        if self._secrets is not None and self._secrets.original is not None:
            if not self.built:
                self(inputs, training=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Keras's, of a list of one input
                check_start(self, self._secrets, inputs)
            self._secrets.original = None

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, on decoded probabilities. When it ends, it teaches the traces.

        Raises:
            LockedModelError: the model is not unlocked.
            ArgumentError: labels out of range, or data that `adapt` cannot take.

        Example:
        >>> history = model.fit(x[:64], y[:64], epochs=2, batch_size=64, verbose=0).history
        >>> sorted(history)
        ['accuracy', 'confusion_loss', 'loss']
        """
        secrets = self._unlocked()
        y = single_labels(y)
        if isinstance(y, np.ndarray):
            labels = np.asarray(class_indices(y, self.num_classes))
            check_labels(labels, self.num_classes, self.ignored_class)
        if secrets.awaits_adapt():
            split = kwargs.get("validation_split") or 0.0
            if split and y is not None:  # as Keras splits: the last samples are held out
                rows = int(len(y) * (1 - split))
                self.adapt(keras.tree.map_structure(lambda a: a[:rows], x), y[:rows])
            else:
                self.adapt(x, y)
        elif secrets.original is not None and (y is not None or hasattr(x, "element_spec")):
            self._look(next(batches(x, y, getattr(self, "preprocess_samples", None)))[0])
        secrets.original = None
        history = super().fit(x, y, *args, **kwargs)
        self.teach_traces()
        return history

    def teach_traces(self) -> None:
        """Learn the trace labels, as the model is now. `fit` does this when it ends.

        Call it after other loops, or after loading the weights of an earlier epoch. Only
        columns of the head change that trace inputs lie on (`models/teach_traces.py`). Without
        trace labels, with a frozen head, or before `adapt`, it does nothing.

        Raises:
            LockedModelError: the model is not unlocked.

        Example:
        >>> from keras_encryip import ProtectionMetrics
        >>> model.teach_traces()
        >>> ProtectionMetrics().measure(model)["trace_labels_read"]
        1.0
        """
        state = self._unlocked().training
        if state is None or state.traces is None or state.samples is None:
            return
        if self.confused_labels.trainable:
            teach_traces(self, state.traces, self._unlocked().assignment(), state.samples)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on decoded probabilities; call `adapt` first.

        Raises:
            LockedModelError: the model is not unlocked.
            ArgumentError: `adapt` was not called.

        Example:
        >>> results = model.train_on_batch(x[:64], y[:64], return_dict=True)
        >>> sorted(results)
        ['accuracy', 'confusion_loss', 'loss']
        """
        if self._unlocked().awaits_adapt():
            raise ArgumentError("Call `adapt(x, y)` on a sample before `train_on_batch`.")
        self._look(x)
        return super().train_on_batch(x, single_labels(y), *args, **kwargs)

    # --- saving ----------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            **keras.Model.get_config(self),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "num_labels": self.num_labels,
            "codebook": self.codebook,
            "strategy": self.strategy,
            "copies": self.copies,
            "confusion_weight": self.confusion_weight,
            "teacher_weight": self.teacher_weight,
            "temperature": self.temperature,
            "binary": self.binary,
            "head": keras.saving.serialize_keras_object(self.head),
            "dtypes": self.dtypes,
            "frozen": frozen(self.backbone),
            "output": self.output_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        if "neutrality_weight" in config:
            raise FormatError(
                f"Model {config.get('name')!r} was protected by release 0.3 of keras_encryip, "
                "which reads it. Protect the classifier anew with this release, or use release 0.3."
            )
        config = dict(config)
        config["head"] = keras.saving.deserialize_keras_object(
            config["head"], custom_objects=custom_objects
        )
        backbone = keras.saving.deserialize_keras_object(
            config.pop("backbone"), custom_objects=custom_objects
        )
        return with_own_steps(cls, backbone)(backbone, **config)
