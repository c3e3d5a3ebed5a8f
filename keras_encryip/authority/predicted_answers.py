"""Every user's trace answers, computed once per codebook and kept sealed in the ledger."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.schema import trace_answers_table, users_table
from keras_encryip.crypto.encoding import decode_scalar
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.errors import LedgerError, SignatureError, instead_of
from keras_encryip.formats.progress import progress_bar
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.codebook import Codebook
from keras_encryip.tracing.statistics import coincidences

CHUNK: Final = 1024
"""Users whose answers are sealed together: few enough to re-write when one is added."""


class DamagedAnswersError(LedgerError):
    """Kept answers were changed, moved or removed. They follow from the keys: `drop` them."""


class PredictedAnswers:
    """The answers of all users under one codebook, in the order of issue.

    Args:
        ledger: where they are kept.
        keys: seals the answers, with which a user could be framed, and has the users' keys.
        codebook, assignment, tracing: what the answers follow from.
    """

    def __init__(
        self,
        ledger: Ledger,
        keys: AuthorityKeys,
        codebook: Codebook,
        assignment: LabelAssignment,
        tracing: tuple[TracingHeader, ...],
    ) -> None:
        self._ledger = ledger
        self._keys = keys
        self._codebook = codebook
        self._assignment = assignment
        self._tracing = tracing
        # One value above the classes stands for "shut out".
        self._dtype = np.min_scalar_type(codebook.num_classes)

    def compare(self, observed: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Compare all users' answers with what was observed; missing ones are computed first.

        Args:
            observed: lists of answers, int `[T]`.

        Returns:
            For each list what `coincidences` gives for all users, in the order of issue.
        """
        try:
            return self._compare(observed)
        except DamagedAnswersError:
            self.drop()
        return self._compare(observed)

    def _compare(self, observed: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        with progress_bar("predicting users' answers", self.missing()) as advance:
            while added := self.extend():
                advance(added)
        classes = self._codebook.num_classes
        with self._ledger.reading() as connection:
            chunks = [
                [coincidences(said, answers, classes) for said in observed]
                for _, answers in self.read(connection)
            ]
        nobody = [np.zeros(0, int), np.zeros(0)]
        compared = []
        for which in range(len(observed)):
            parts = [nobody, *(chunk[which] for chunk in chunks)]
            hits, chances = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            compared.append((hits, chances))
        return compared

    def catch_up(self, *, at_most: int) -> None:
        """Compute what is missing, unless that is more than `at_most` users and a chunk."""
        with contextlib.suppress(DamagedAnswersError):  # tracing computes them again
            if self.missing() <= at_most + CHUNK:
                while self.extend():
                    pass

    def missing(self) -> int:
        """How many users' answers are not kept yet."""
        with self._ledger.reading() as connection:
            return _users(connection) - self._kept(connection)

    def extend(self) -> int:
        """Compute and keep the answers of the next users; returns how many, 0 at the end.

        At most `CHUNK` at a time, so that long work commits as it goes.
        """
        with self._ledger.writing() as connection:
            kept = self._kept(connection)
            chunk, done = divmod(kept, CHUNK)
            query = sa.select(users_table.c.z).order_by(users_table.c.user_id)
            rows = connection.execute(query.offset(kept).limit(CHUNK - done)).all()
            if not rows:
                return 0
            keys = [self._keys.master.user_key(decode_scalar(row.z, what="z")) for row in rows]
            answers = self._codebook.predicted_answers(keys, self._assignment, self._tracing)
            answers[answers == TRACE] = self._codebook.num_classes
            answers = answers.astype(self._dtype)
            if done:
                known = np.concatenate([part for _, part in self.read(connection, chunk)])
                answers = np.concatenate([known, answers])
            same_chunk = self._rows() & (trace_answers_table.c.chunk == chunk)
            connection.execute(trace_answers_table.delete().where(same_chunk))
            sealed = self._keys.seal(answers.tobytes(), self._context(chunk, len(answers)))
            connection.execute(
                trace_answers_table.insert().values(
                    codebook_id=self._codebook.codebook_id,
                    chunk=chunk,
                    users=len(answers),
                    sealed=sealed,
                )
            )
            return len(rows)

    def read(self, connection: sa.Connection, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(position of the first user, `[users, T]` answers) of every chunk from `first` on.

        K stands for no answer: the codebook shuts that user out.

        Raises:
            DamagedAnswersError: a chunk was changed, moved or removed: users would be mistaken.
        """
        self._kept(connection)
        t = trace_answers_table.c
        query = (
            sa.select(t.chunk, t.users, t.sealed)
            .where(self._rows(), t.chunk >= first)
            .order_by(t.chunk)
        )
        for row in connection.execute(query):
            data = self._unseal(row)
            yield row.chunk * CHUNK, np.frombuffer(data, self._dtype).reshape(row.users, -1)

    def _unseal(self, row: Any) -> bytes:
        with instead_of(SignatureError, raises=lambda _: _damaged(row.chunk)):
            return self._keys.unseal(row.sealed, self._context(row.chunk, row.users))

    def drop(self) -> None:
        """Forget this codebook's answers; they are computed again when they are needed."""
        with self._ledger.writing() as connection:
            connection.execute(trace_answers_table.delete().where(self._rows()))

    def _kept(self, connection: sa.Connection) -> int:
        """How many users' answers there are: those of the first users, without a gap."""
        t = trace_answers_table.c
        query = sa.select(t.chunk, t.users).where(self._rows()).order_by(t.chunk)
        count = 0
        for row in connection.execute(query).all():
            if row.chunk * CHUNK != count or not 0 < row.users <= CHUNK:
                raise _damaged(row.chunk)
            count += row.users
        if count > _users(connection):
            raise _damaged(count // CHUNK)
        return count

    def _rows(self) -> sa.ColumnElement[bool]:
        return trace_answers_table.c.codebook_id == self._codebook.codebook_id

    def _context(self, chunk: int, users: int) -> str:
        return f"trace_answers {self._codebook.codebook_id.hex()} {chunk} {users}"


def _users(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(users_table)).scalar_one())


def _damaged(chunk: int) -> DamagedAnswersError:
    return DamagedAnswersError(f"The authority's file is damaged at trace answers {chunk}.")
