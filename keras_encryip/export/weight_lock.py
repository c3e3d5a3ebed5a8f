"""What a locked SavedModel unlocks itself with: plain TensorFlow operations, in memory.

The checkpoint holds `crypto.locked_weights`' ciphertext in the variables' own shapes and types. The
initialiser, or the signature `unlock`, checks key and tag, decrypts, assigns, and marks the model
open. A mutex keeps two who unlock at once from decrypting twice; nothing is assigned
before everything was checked; the answers wait for the mark.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.crypto.locked_weights import (
    CHECK_BYTES,
    CHECKED_BLOCK,
    TAG_BYTES,
    Piece,
    lengths,
    padded,
    segments,
)
from keras_encryip.export.chacha20 import chacha20
from keras_encryip.export.poly1305 import CHUNK_WORDS, LongTag
from keras_encryip.models.headless import all_layers
from keras_encryip.tracing.checkpoint import LOCKED, PROOF

UNLOCK: Final = "unlock"
"""The signature: `key_bytes` → `unlocked`."""

OURS: Final = "keras_encryip_lock"
"""In the names of constants that hold no secret of the owner's: sizes of variables, which are
public."""

LETTERS: Final = [bytes([i]) for i in range(256)]
"""What strings are put together from."""

_LENGTH: Final = 32
_CHUNK_BLOCKS: Final = CHUNK_WORDS // 16
KEY_BYTES: Final = tf.TensorSpec(None, tf.string, name="key_bytes")
_WORDS: Final = tf.TensorSpec([None], tf.uint32)


class WeightLock(tf.saved_model.experimental.TrackableResource):
    """The lock of one exported model.

    Args:
        key_file: where the initialiser looks for the 32 bytes of the key.

    Attributes:
        opened: `tf.Variable`, whether the variables hold weights.
        proof: `tf.Variable`, uint8 `[32]`: key check (16) ‖ tag (16).
    """

    def __init__(self, key_file: str) -> None:
        super().__init__()
        self._key_file = key_file
        self.variables: list[tf.Variable] = []
        self.tables: list[LockedTable] = []
        self._told = (
            f"This model is locked. Put its key at {key_file} and load the model again, or send "
            f"the key to the signature {UNLOCK} as key_bytes; `encryip unlock` makes it."
        )
        self.opened = tf.Variable(False, trainable=False, name="opened")
        self.proof = tf.Variable(tf.zeros([CHECK_BYTES + TAG_BYTES], tf.uint8), trainable=False)
        self._open = tf.function(
            self._open_with, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
        )
        self._decrypting = _shared(tf.TensorSpec([8], tf.uint32))(self._decrypt)
        self._track_trackable(self.opened, "opened")
        self._track_trackable(self.proof, PROOF)

    @contextmanager
    def locking(self, model: Any) -> Iterator["WeightLock"]:
        """The model's layers look things up in locked tables meanwhile."""
        places = {
            place: table
            for place, table in lookup_tables(model).items()
            if isinstance(table, tf.lookup.StaticHashTable)
        }
        locked = {id(table): LockedTable(table) for table in {*places.values()}}
        self.tables = list(locked.values())
        try:
            for (layer, name), table in places.items():
                _put(layer, name, locked[id(table)])
            yield self
        finally:
            for (layer, name), table in places.items():
                _put(layer, name, table)

    def locks(self, variables: Iterable[tf.Variable]) -> None:
        """Say which variables will be ciphertext, in order; once, before anything is saved."""
        every = {id(variable): variable for variable in variables}
        every |= {id(v): v for table in self.tables for v in table.variables}
        every.pop(id(self.opened), None)
        # Wide types first: no number lies in two segments. Types together: the graph stays small.
        self.variables = sorted(every.values(), key=lambda v: (-v.dtype.size, v.dtype.name))
        for number, variable in enumerate(self.variables):
            self._track_trackable(variable, f"{LOCKED}{number}")

    def guard(self, endpoint: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """An endpoint that fails while the model is locked."""

        def guarded(inputs: Any) -> Any:
            opened = tf.debugging.Assert(self.opened.read_value(), [self._told])
            with tf.control_dependencies([opened]):
                return endpoint(keras.tree.map_structure(tf.identity, inputs))

        return guarded

    def unlock(self, key_bytes: Any) -> dict[str, Any]:
        """The signature `unlock`: one key, alone or in a batch of one."""
        with tf.control_dependencies([self._open(tf.reshape(key_bytes, []))]):
            return {"unlocked": tf.fill(tf.shape(key_bytes), True)}

    # --- resource ----------------------------------------------------------------

    def _create_resource(self) -> Any:
        return tf.raw_ops.MutexV2(shared_name=f"encryip_lock_{id(self):x}")

    def _initialize(self) -> Any:
        # What depends on the clock is not computed ahead when a graph is optimised.
        nothing = tf.strings.substr(tf.strings.as_string(tf.timestamp()), 0, 0)
        path = tf.strings.join([self._key_file, nothing])
        exists = tf.size(tf.io.matching_files(path)) > 0
        closed = self.opened.assign(False, read_value=False)  # whatever the file says
        with tf.control_dependencies([] if closed is None else [closed]):
            return tf.cond(
                exists, lambda: self._open(tf.io.read_file(path)), lambda: tf.constant(True)
            )

    # --- unlocking ---------------------------------------------------------------

    def _open_with(self, key: Any) -> Any:
        """True, once the model is open; fails, with nothing assigned, for another key."""
        with _unoptimised():
            return self._checked_open(key)

    def _checked_open(self, key: Any) -> Any:
        whole = tf.debugging.Assert(
            tf.equal(tf.strings.length(key), _LENGTH),
            [f"The key of a locked model has {_LENGTH} bytes; this one has another length."],
        )
        with tf.control_dependencies([whole]), tf.device("CPU:0"):
            words = _words(tf.reshape(tf.io.decode_raw(key, tf.uint8), [_LENGTH]))
            check = _stream(words, tf.constant(CHECKED_BLOCK, tf.uint32))[:4]
            right = tf.debugging.Assert(
                tf.reduce_all(check == _words(self.proof.read_value()[:CHECK_BYTES])),
                ["This is not the key of this version: nothing was unlocked."],
            )
        with tf.control_dependencies([right]):
            held = tf.raw_ops.MutexLock(mutex=self.resource_handle)
        with tf.control_dependencies([held]):
            done = tf.cond(
                self.opened.read_value(), lambda: tf.constant(True), lambda: self._decrypting(words)
            )
        with tf.control_dependencies([done]):
            released = tf.raw_ops.ConsumeMutexLock(mutex_lock=held)
        with tf.control_dependencies([released]):
            return tf.identity(done)

    def _decrypt(self, key: Any) -> Any:
        sizes = [v.dtype.size * int(np.prod(v.shape)) for v in self.variables]
        gathered = segments(sizes)
        with tf.device("CPU:0"):
            tag = LongTag(_stream(key, tf.constant(0, tf.uint32))[:8])
            total = tag.start()
            for segment in gathered:
                with tf.control_dependencies([total]):
                    data = self._segment(segment)
                total = _absorb(total, data, tag.powers, tag.leaps, tag.leap)
            total = tag.finish(total, _words(tf.constant(np.frombuffer(lengths(sizes), np.uint8))))
            whole = tf.debugging.Assert(
                tf.reduce_all(total == _words(self.proof.read_value()[CHECK_BYTES:])),
                ["The files of this version were changed: nothing was unlocked."],
            )
        done, block = whole, 1
        started: list[Any] = []  # parts of a variable that goes on in the next segment
        for segment in gathered:
            with tf.control_dependencies([done]), tf.device("CPU:0"):
                plain = _decrypted(key, self._segment(segment), tf.constant(block, tf.uint32))
            block += padded(segment) // 64
            assigned = []
            for piece, part in zip(segment, self._cut(plain, segment), strict=True):
                started.append(part)
                if piece.stop == sizes[piece.array]:
                    whole_value = started[0] if len(started) == 1 else tf.concat(started, 0)
                    variable = self.variables[piece.array]
                    value = tf.reshape(whole_value, variable.shape)
                    assigned.append(variable.assign(value, read_value=False))
                    started = []
            done = tf.group(*assigned, plain)
        with tf.control_dependencies([done]):
            filled = [table.fill() for table in self.tables]
        with tf.control_dependencies([done, *filled]):
            opened = self.opened.assign(True, read_value=False)
        with tf.control_dependencies([opened]):
            return tf.constant(True)

    def _runs(self, segment: Sequence[Piece]) -> Iterator[tuple[Any, list[Piece]]]:
        """Neighbours in a segment that have the same type."""
        for dtype, pieces in groupby(segment, key=lambda piece: self.variables[piece.array].dtype):
            yield dtype, list(pieces)

    def _segment(self, segment: Sequence[Piece]) -> Any:
        """The words of a segment, with the zeros at its end."""
        flat, runs = tf.constant([-1]), []
        for dtype, pieces in self._runs(segment):
            parts = []
            for piece in pieces:
                variable = self.variables[piece.array]
                part = tf.reshape(variable.value(), flat)
                if piece.stop - piece.start < dtype.size * variable.shape.num_elements():
                    part = part[piece.start // dtype.size : piece.stop // dtype.size]
                parts.append(part)
            runs.append(_to_bytes(tf.concat(parts, 0)))
        missing = padded(segment) - sum(piece.stop - piece.start for piece in segment)
        return _words(tf.concat([*runs, tf.zeros([missing], tf.uint8)], axis=0))

    def _cut(self, plain: Any, segment: Sequence[Piece]) -> Iterator[Any]:
        """The numbers of each piece of a segment, from its bytes."""
        at = 0
        for dtype, pieces in self._runs(segment):
            counts = [(piece.stop - piece.start) // dtype.size for piece in pieces]
            stop = at + sum(counts) * dtype.size
            yield from tf.split(_from_bytes(plain[at:stop], dtype), tf.constant(counts, name=OURS))
            at = stop


def lookup_tables(model: Any) -> dict[tuple[Any, str], Any]:
    """(layer, attribute) → each table that a layer looks up, which graphs hold by reference."""
    kind = tf.saved_model.experimental.TrackableResource
    return {
        (layer, name): value
        for layer in all_layers(model)
        for name, value in vars(layer).items()
        if isinstance(value, kind)
    }


def _put(layer: Any, name: str, table: Any) -> None:
    """As it was put there: Keras's tracker would refuse, or keep both."""
    vars(layer)[name] = table


class LockedTable(tf.lookup.StaticHashTable):
    """A vocabulary whose contents are locked with the variables; before, nothing is found in it.

    Args:
        table: what it stands for.
    """

    def __init__(self, table: tf.lookup.StaticHashTable) -> None:
        keys, values = table.export()
        self._kept = [_Kept(keys), _Kept(values)]
        one = (tf.zeros([1], dtype) for dtype in (table.key_dtype, table.value_dtype))
        super().__init__(tf.lookup.KeyValueTensorInitializer(*one), table.default_value)

    def _initialize(self) -> Any:
        return tf.no_op()

    @property
    def variables(self) -> list[tf.Variable]:
        """What holds its contents."""
        return [variable for kept in self._kept for variable in kept.variables]

    def fill(self) -> Any:
        """The operation that fills it, once its variables are open."""
        keys, values = (kept.read() for kept in self._kept)
        return tf.raw_ops.InitializeTableV2(
            table_handle=self.resource_handle, keys=keys, values=values
        )


class _Kept:
    """A vector of numbers, or of strings as their bytes and lengths."""

    def __init__(self, values: Any) -> None:
        if values.dtype == tf.string:
            strings = [bytes(s) for s in values.numpy()]
            parts = [
                np.frombuffer(b"".join(strings), np.uint8),
                np.array([len(s) for s in strings], np.int64),
            ]
        else:
            parts = [values.numpy()]
        self.variables = [tf.Variable(part, trainable=False) for part in parts]

    def read(self) -> Any:
        values = [variable.read_value() for variable in self.variables]
        if len(values) == 1:
            return values[0]
        characters = tf.gather(tf.constant(LETTERS), tf.cast(values[0], tf.int32))
        return tf.strings.reduce_join(tf.RaggedTensor.from_row_lengths(characters, values[1]), -1)


@contextmanager
def _unoptimised() -> Iterator[None]:
    """Functions that are called inside run as they are: they run once.

    For a graph with hundreds of variables, optimisers take longer than what they would speed up.
    """
    options = tf.config.optimizer
    before = options.get_experimental_options().get("disable_meta_optimizer", False)
    options.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        options.set_experimental_options({"disable_meta_optimizer": before})


def _shared(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Any]:
    """A function that graphs call: a copy at each call would take minutes to load."""
    return tf.function(
        input_signature=signature,
        experimental_attributes={"_noinline": True},
        autograph=False,
    )


@_shared(tf.TensorSpec([8], tf.uint32), tf.TensorSpec([], tf.uint32))
def _stream(key: Any, block: Any) -> Any:
    """A chunk of the key stream, from a block on."""
    nonce = tf.zeros([1, 2], tf.uint32)
    return chacha20(key[:, None], nonce, _CHUNK_BLOCKS, block, looped=True)[0]


@_shared(
    tf.TensorSpec([5], tf.int64),
    _WORDS,
    tf.TensorSpec([2048, 5], tf.float64),
    tf.TensorSpec([32, 5], tf.int64),
    tf.TensorSpec([5], tf.int64),
)
def _absorb(total: Any, data: Any, powers: Any, leaps: Any, leap: Any) -> Any:
    """What the tag is of, with a segment more."""

    def step(chunk: Any, total: Any) -> Any:
        words = tf.slice(data, [chunk * CHUNK_WORDS], [CHUNK_WORDS])
        return chunk + 1, LongTag.absorb(total, words, powers, leaps, leap)

    count = tf.size(data) // CHUNK_WORDS
    return tf.while_loop(
        lambda chunk, total: chunk < count, step, [0, total], parallel_iterations=1
    )[1]


@_shared(tf.TensorSpec([8], tf.uint32), _WORDS, tf.TensorSpec([], tf.uint32))
def _decrypted(key: Any, data: Any, block: Any) -> Any:
    """The bytes of a segment whose first block of the key stream has this number."""
    count = tf.size(data) // CHUNK_WORDS

    def step(chunk: Any, block: Any, plain: Any) -> Any:
        words = tf.slice(data, [chunk * CHUNK_WORDS], [CHUNK_WORDS])
        plain = plain.write(chunk, tf.bitwise.bitwise_xor(words, _stream(key, block)))
        return chunk + 1, block + tf.constant(_CHUNK_BLOCKS, tf.uint32), plain

    plain = tf.TensorArray(tf.uint32, count, element_shape=[CHUNK_WORDS])
    plain = tf.while_loop(
        lambda chunk, *_: chunk < count, step, [0, block, plain], parallel_iterations=1
    )[2]
    return tf.reshape(tf.bitcast(plain.concat(), tf.uint8), [-1])


def _words(data: Any) -> Any:
    return tf.bitcast(tf.reshape(data, [-1, 4]), tf.uint32)


def _to_bytes(value: Any) -> Any:
    if value.dtype == tf.bool:
        return tf.reshape(tf.cast(value, tf.uint8), [-1])
    return tf.reshape(tf.bitcast(value, tf.uint8), [-1])


def _from_bytes(data: Any, dtype: Any) -> Any:
    if dtype == tf.bool:
        return tf.cast(tf.bitwise.bitwise_and(data, tf.constant(1, tf.uint8)), dtype)
    return tf.bitcast(tf.reshape(data, [-1, dtype.size]) if dtype.size > 1 else data, dtype)
