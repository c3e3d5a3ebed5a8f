"""What evidence has shown of accused users: from then on it proves nothing against them.

A folder of evidence holds the accused users' bits and slot keys at the slots that it opens, or the
mark of their copies of a model. Whoever has the folder can answer, or mark weights, as they would.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import numpy as np

from keras_encryip.authority.event_log import signed_events
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.schema import events_table
from keras_encryip.tracing.events import EVIDENCE_WRITTEN


@dataclass(frozen=True, repr=False)
class EarlierEvidence:
    """All evidence that was written so far.

    Attributes:
        events: numbers of the events that say so.
        slots: key id → the slots that were opened about this user.
        marks: (model id, key id) whose mark was shown.
        dates: key id → when evidence about this user was last written.
    """

    events: set[int] = field(default_factory=set)
    slots: dict[str, set[int]] = field(default_factory=dict)
    marks: set[tuple[int, str]] = field(default_factory=set)
    dates: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, ledger: Ledger, known: Container[int] | None = None) -> "EarlierEvidence":
        """Of an authority's event log: all of it, or the events of these numbers."""
        evidence = cls()
        with ledger.reading() as connection:
            for event, _, _ in signed_events(connection, events_table.c.kind == EVIDENCE_WRITTEN):
                if known is not None and event.number not in known:
                    continue
                evidence.events.add(event.number)
                for key_id in event.details["accused"]:
                    evidence.slots.setdefault(key_id, set()).update(event.details["slots"])
                    evidence.dates[key_id] = event.at
                    if "model_id" in event.details:
                        evidence.marks.add((event.details["model_id"], key_id))
        return evidence

    def unseen(self, key_id: str, slots: np.ndarray) -> np.ndarray:
        """bool `[n]`: which of some slots no evidence about this user has opened."""
        shown = sorted(self.slots.get(key_id, ()))
        return np.isin(slots, np.array(shown, np.int64), invert=True)

    def stated(self, users: Iterable[tuple[str, str]]) -> dict[str, str]:
        """What a report says of those of some users (key id, subject) that evidence is about."""
        told = [f"{name} on {self.dates[key]}" for key, name in users if key in self.dates]
        return {"shown in earlier evidence": ", ".join(told)} if told else {}
