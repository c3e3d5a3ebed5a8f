"""Every user's score against what was observed: codewords are computed, nothing is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from keras_encryip.authority.earlier_evidence import EarlierEvidence
from keras_encryip.authority.user_store import UserStore
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.tracing.report import MAX_SCORES, MAX_SHOWN, Findings, Suspect
from keras_encryip.tracing.statistics import (
    Ranking,
    corrected,
    innocent_tail,
    least_score,
    proves_guilt,
    rank_users,
    scores,
)

_CHUNK: Final = 1 << 23
"""Bits of codewords that are computed at a time."""


@dataclass(frozen=True, repr=False)
class ScoredUsers:
    """All users, ranked.

    Attributes:
        ranking: by position in `key_ids`.
        key_ids: bytes of 16 hexadecimal digits `[users]`, in the order of issue.
        readings: (scores, chances before any correction) of all users, for each comparison.
        threshold: the least score that proves guilt in the leading user's comparison; `None` if
            none does.
        earlier: what evidence has shown.
        identified: positions of users whom only slots that evidence has shown would convict.
    """

    ranking: Ranking
    key_ids: np.ndarray
    readings: list[tuple[np.ndarray, np.ndarray]]
    threshold: float | None
    earlier: EarlierEvidence
    identified: list[int]

    def leading(self, count: int) -> dict[str, int]:
        """Key ids of the first users by evidence → their positions."""
        positions = self.ranking.order[:count].tolist()
        return {self.key_ids[i].decode("ascii"): i for i in positions}

    def suspects(self, users: UserStore) -> list[Suspect]:
        """All who are guilty or identified, and the next few, strongest evidence first."""
        leading = self.leading(max(MAX_SHOWN, self.ranking.guilty))
        leading |= {self.key_ids[i].decode("ascii"): i for i in self.identified}
        known = {user.key_id: user for user in users.with_keys(leading)}
        scores, chances = self.ranking.scores, self.ranking.p_values
        return [
            Suspect(
                known[k].subject,
                k,
                known[k].status,
                float(scores[i]),
                float(chances[i]),
                identified=i in self.identified,
            )
            for k, i in leading.items()
        ]

    def alone(self, suspect: Suspect) -> list[Suspect]:
        """A suspect as each comparison alone says it."""
        position = int(np.flatnonzero(self.key_ids == suspect.key_id.encode("ascii"))[0])
        return [
            msgspec.structs.replace(
                suspect,
                score=float(scores[position]),
                p_value=corrected(float(chances[position]), self.ranking.tests),
            )
            for scores, chances in self.readings
        ]

    def findings(self, users: UserStore, **facts: Any) -> Findings:
        """As a report says it; `facts` are its other fields."""
        best = self.ranking.order[:MAX_SCORES]
        suspects = self.suspects(users)
        evidence = self.earlier.stated((s.key_id, s.subject) for s in suspects)
        facts["evidence"] = facts.get("evidence", {}) | evidence
        computed = {
            "score_name": "score",
            "scores": self.ranking.scores[best].tolist(),
            "suspects": suspects,
            "tested": len(self.key_ids),
            "tests": max(1, self.ranking.tests),
            "threshold": self.threshold,
        }
        return Findings.now(**{**computed, **facts})


def score_users(
    users: UserStore,
    secrets: SlotSecrets,
    slots: np.ndarray,
    comparisons: Sequence[np.ndarray],
    *,
    earlier: EarlierEvidence | None = None,
    apart: str | None = None,
) -> ScoredUsers:
    """Score all users, whatever their status, in each of some comparisons.

    Users whom evidence accused are scored without the slots that it opened about them.

    Args:
        users: who could be named.
        secrets: their codewords.
        slots: int `[n]`, what was observed lies on.
        comparisons: weights of bit 1 at these slots, float64 `[n]` each, as `observed_weights`
            gives them.
        earlier: evidence that was written before.
        apart: key id of a user who is left out.
    """
    biases = secrets.biases[slots]
    used = np.flatnonzero(np.any(comparisons, axis=0))
    parts: list[list[np.ndarray]] = [[] for _ in comparisons]
    key_ids = users.key_ids()
    if apart is not None:
        key_ids = key_ids[key_ids != apart.encode("ascii")]
    step = max(1, _CHUNK // max(1, len(used)))
    for start in range(0, len(key_ids), step):
        chunk = key_ids[start : start + step].tobytes().decode("ascii")
        codewords = secrets.codewords([chunk], slots[used])
        for part, weights in zip(parts, comparisons, strict=True):
            part.append(scores(weights[used], biases[used], codewords))
    totals = [np.concatenate([np.empty(0), *part]) for part in parts]
    tails = [innocent_tail(w, biases, s) for s, w in zip(totals, comparisons, strict=True)]
    readings = list(zip(totals, tails, strict=True))
    earlier = earlier or EarlierEvidence()
    tests = len(key_ids) * len(comparisons)
    identified = []
    for key_id in earlier.slots:
        unseen = earlier.unseen(key_id, slots)
        if unseen.all():
            continue
        for position in np.flatnonzero(key_ids == key_id.encode("ascii")):
            before = min(corrected(float(tail[position]), tests) for tail in tails)
            bits = secrets.codeword(key_id)[slots]
            for (score, tail), weights in zip(readings, comparisons, strict=True):
                counted = weights * unseen
                score[position] = scores(counted, biases, bits[None])[0]
                tail[position] = innocent_tail(counted, biases, score[position])
            after = min(corrected(float(tail[position]), tests) for tail in tails)
            if proves_guilt(before) and not proves_guilt(after):
                identified.append(int(position))
    ranking = rank_users(readings)
    best = int(ranking.best[ranking.order[0]]) if len(ranking.order) else 0
    least = least_score(comparisons[best], biases, ranking.tests)
    threshold = least if np.isfinite(least) else None
    return ScoredUsers(ranking, key_ids, readings, threshold, earlier, identified)
