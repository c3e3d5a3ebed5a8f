"""Every user's score against what was observed: codewords are computed, nothing is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keras_encryip.authority.user_store import UserStore
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.tracing.report import MAX_SCORES, MAX_SHOWN, Findings, Suspect
from keras_encryip.tracing.statistics import (
    Ranking,
    innocent_tail,
    least_score,
    rank_users,
    scores,
)

_CHUNK: Final = 1 << 17


@dataclass(frozen=True, repr=False)
class ScoredUsers:
    """All users, ranked.

    Attributes:
        ranking: by position in `key_ids`.
        key_ids: bytes of 16 hexadecimal digits `[users]`, in the order of issue.
        threshold: the least score that proves guilt in the leading user's comparison; `None` if
            none does.
    """

    ranking: Ranking
    key_ids: np.ndarray
    threshold: float | None

    def leading(self, count: int) -> dict[str, int]:
        """Key ids of the first users by evidence → their positions."""
        positions = self.ranking.order[:count].tolist()
        return {self.key_ids[i].decode("ascii"): i for i in positions}

    def suspects(self, users: UserStore) -> list[Suspect]:
        """All who are guilty, and the next few, strongest evidence first."""
        leading = self.leading(max(MAX_SHOWN, self.ranking.guilty))
        known = {user.key_id: user for user in users.with_keys(leading)}
        scores, chances = self.ranking.scores, self.ranking.p_values
        return [
            Suspect(known[k].subject, k, known[k].status, float(scores[i]), float(chances[i]))
            for k, i in leading.items()
        ]

    def findings(self, users: UserStore, **facts: Any) -> Findings:
        """As a report says it; `facts` are its other fields."""
        best = self.ranking.order[:MAX_SCORES]
        computed = {
            "score_name": "score",
            "scores": self.ranking.scores[best].tolist(),
            "suspects": self.suspects(users),
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
    apart: str | None = None,
) -> ScoredUsers:
    """Score all users, whatever their status, in each of some comparisons.

    Args:
        users: who could be named.
        secrets: their codewords.
        slots: int `[n]`, what was observed lies on.
        comparisons: weights of bit 1 at these slots, float64 `[n]` each, as `observed_weights`
            gives them.
        apart: key id of a user who is left out.
    """
    biases = secrets.biases[slots]
    used = np.flatnonzero(np.any(comparisons, axis=0))
    parts: list[list[np.ndarray]] = [[] for _ in comparisons]
    names = [np.empty(0, "S16")]
    for chunk in users.key_ids(_CHUNK):
        if apart in chunk:
            chunk.remove(apart)
        codewords = secrets.codewords(chunk, slots[used])
        for part, weights in zip(parts, comparisons, strict=True):
            part.append(scores(weights[used], biases[used], codewords))
        names.append(np.array(chunk, "S16"))
    totals = [np.concatenate([np.empty(0), *part]) for part in parts]
    ranking = rank_users(
        [(s, innocent_tail(w, biases, s)) for s, w in zip(totals, comparisons, strict=True)]
    )
    best = int(ranking.best[ranking.order[0]]) if len(ranking.order) else 0
    least = least_score(comparisons[best], biases, ranking.tests)
    return ScoredUsers(ranking, np.concatenate(names), least if np.isfinite(least) else None)
