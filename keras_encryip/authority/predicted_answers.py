"""Every user's trace answers, computed once per codebook and kept sealed in the ledger."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import sqlalchemy as sa

from keras_encryip.crypto.encoding import decode_scalar
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.crypto.aead import seal, unseal
from keras_encryip.errors import LedgerError, SignatureError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.codebook import Codebook
from keras_encryip.authority.schema import trace_answers_table, users_table

CHUNK: Final = 1024
"""Users whose answers are sealed together: few enough to re-write when one is added."""


class DamagedCacheError(LedgerError):
    """Cached answers were changed, moved or removed. They follow from the keys: `drop` them."""


class AnswerCache:
    """The answers of all users under one codebook, in the order of issue.

    Args:
        data_key: seals the answers, with which a user could be framed.
        master, codebook, assignment, tracing: what the answers follow from.
    """

    def __init__(
        self,
        data_key: bytes,
        master: MasterKey,
        codebook: Codebook,
        assignment: LabelAssignment,
        tracing: tuple[TracingHeader, ...],
    ) -> None:
        self._data_key = data_key
        self._master = master
        self._codebook = codebook
        self._assignment = assignment
        self._tracing = tracing
        # One value above the classes stands for "shut out".
        self._dtype = np.min_scalar_type(codebook.num_classes)

    def missing(self, connection: sa.Connection) -> int:
        """How many users' answers are not cached yet."""
        return _users(connection) - self._cached(connection)

    def extend(self, connection: sa.Connection) -> int:
        """Compute and keep the answers of the next users; returns how many, 0 at the end.

        At most `CHUNK` at a time, so that long work commits as it goes.
        """
        cached = self._cached(connection)
        chunk, done = divmod(cached, CHUNK)
        rows = connection.execute(
            sa.select(users_table.c.z)
            .order_by(users_table.c.user_id)
            .offset(cached)
            .limit(CHUNK - done)
        ).all()
        if not rows:
            return 0
        keys = [self._master.user_key(decode_scalar(row.z, what="z")) for row in rows]
        found = self._codebook.predicted_answers(keys, self._assignment, self._tracing)
        answers = np.where(found == TRACE, self._codebook.num_classes, found).astype(self._dtype)
        if done:
            known = np.concatenate([part for _, part in self.read(connection, chunk)])
            answers = np.concatenate([known, answers])
        t = trace_answers_table.c
        own = (t.codebook_id == self._codebook.codebook_id) & (t.chunk == chunk)
        connection.execute(trace_answers_table.delete().where(own))
        connection.execute(
            trace_answers_table.insert().values(
                codebook_id=self._codebook.codebook_id,
                chunk=chunk,
                users=len(answers),
                sealed=seal(self._data_key, answers.tobytes(), self._context(chunk, len(answers))),
            )
        )
        return len(rows)

    def read(self, connection: sa.Connection, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(position of the first user, `[users, T]` answers) of every chunk from `first` on.

        K stands for no answer: the codebook shuts that user out.

        Raises:
            DamagedCacheError: a chunk was changed, moved or removed: users would be mistaken.
        """
        self._cached(connection)
        t = trace_answers_table.c
        query = (
            sa.select(t.chunk, t.users, t.sealed)
            .where(t.codebook_id == self._codebook.codebook_id, t.chunk >= first)
            .order_by(t.chunk)
        )
        damaged = None
        for row in connection.execute(query):
            try:
                data = unseal(self._data_key, row.sealed, self._context(row.chunk, row.users))
            except SignatureError:
                damaged = row.chunk
                break
            yield row.chunk * CHUNK, np.frombuffer(data, self._dtype).reshape(row.users, -1)
        if damaged is not None:
            raise _damaged(damaged)

    def drop(self, connection: sa.Connection) -> None:
        """Forget this codebook's answers; they are computed again when they are needed."""
        t = trace_answers_table.c
        own = t.codebook_id == self._codebook.codebook_id
        connection.execute(trace_answers_table.delete().where(own))

    def _cached(self, connection: sa.Connection) -> int:
        """How many users' answers there are: those of the first users, without a gap."""
        t = trace_answers_table.c
        own = t.codebook_id == self._codebook.codebook_id
        query = sa.select(t.chunk, t.users).where(own).order_by(t.chunk)
        count = 0
        for row in connection.execute(query).all():
            if row.chunk * CHUNK != count or not 0 < row.users <= CHUNK:
                raise _damaged(row.chunk)
            count += row.users
        if count > _users(connection):
            raise _damaged(count // CHUNK)
        return count

    def _context(self, chunk: int, users: int) -> bytes:
        return f"trace_answers {self._codebook.codebook_id.hex()} {chunk} {users}".encode()


def _users(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(users_table)).scalar_one())


def _damaged(chunk: int) -> DamagedCacheError:
    return DamagedCacheError(f"The authority's file is damaged at trace answers {chunk}.")
