"""What forgers achieved, as sentences: beyond what is stated, and within it."""

from collections.abc import Iterator

from ..forgery.ground import ACCEPTED
from . import forgeries
from .formats import count, listed
from .found import Results
from .verdicts import Finding, Verdict


def keys(results: Results) -> Iterator[Finding]:
    random = results.forgery.of("random keys").values()
    if random:
        tried, opened, owned = (
            sum(cell[what] for cell in random) for what in ("tried", "opened", "on the polynomial")
        )
        yield Finding(
            Verdict.MISSED if opened or owned else Verdict.MET,
            f"**Random keys, {results.data} (P6).** Of {tried:,} random points {opened} open the "
            f"codebook and {owned} lie on the owner's polynomial.",
        )
    yield from _pooled(results)


def _pooled(results: Results) -> Iterator[Finding]:
    """What coalitions did, against what is stated of their size, and beyond it."""
    broken: Outcomes = {}
    limits: Outcomes = {}
    tried = 0
    for (t, m), counts in forgeries.coalitions(results.forgery).items():
        tried += counts["coalitions"]
        d = forgeries.named_up_to(t)
        for what, number, known in (
            ("innocents named", counts["innocents"], False),
            ("innocents framed on purpose", counts["framed"], m >= t + 2 - d),
            ("a new key made", counts["minted"], m > t),
            ("traitors not all named", counts["coalitions"] - counts["all"], m > d),
        ):
            if number:
                (limits if known else broken).setdefault(what, {}).setdefault(t, []).append(m)
    start = f"**Pooled keys, {results.data} (P5, P6).** "
    if broken:
        yield Finding(Verdict.MISSED, f"{start}Against what is stated: {_sizes(broken)}.")
    elif tried:
        text = f"{count(tried, 'coalition')}: none did more than is stated of its size."
        yield Finding(Verdict.MET, start + text)
    if limits:
        text = f"Coalitions larger than the stated bounds did as feared: {_sizes(limits)}."
        yield Finding(Verdict.LIMIT, start + text)


Outcomes = dict[str, dict[int, list[int]]]
"""Outcome → threshold t → numbers of members."""


def _sizes(outcomes: Outcomes) -> str:
    return "; ".join(
        f"{what} ("
        + ", ".join(f"t = {t}: {' / '.join(map(str, m))} users" for t, m in by_t.items())
        + ")"
        for what, by_t in outcomes.items()
    )


def claims(results: Results) -> Iterator[Finding]:
    """Who proves what against a user whose key no service runs on."""
    rows = list(forgeries.claim_rows(results.forgery))
    for who in forgeries.WHO:
        mine = [
            (claim, row)
            for claim, _, found in rows
            for row in found.values()
            if claim.startswith(who)
        ]
        if not mine:
            continue
        for field, text in (
            ("not committed", "made after the fact and committed to nowhere"),
            ("committed", "committed to, before a judge who does not know the owner's signature"),
            ("the owner's signature expected", "before a judge who expects the owner's signature"),
        ):
            accepted = [claim for claim, row in mine if row.get(field) == ACCEPTED]
            known = field == "committed" or (who == "the owner" and field != "not committed")
            bad = Verdict.LIMIT if known else Verdict.MISSED
            yield Finding(
                bad if accepted else Verdict.MET,
                f"**Forged claims by {who}, {results.data}.** Evidence {text}: "
                f"{len(accepted)} of {len(mine)} accepted"
                + (f" ({listed(sorted(set(accepted)), 4)})." if accepted else "."),
            )
    if rows:
        honest = [
            (service, row)
            for claim, service, found in rows
            if claim.startswith("honest")
            for row in found.values()
        ]
        wrong = [s for s, row in honest if (row["verdict"] == "guilty") != (s == "our model")]
        yield Finding(
            Verdict.MISSED if wrong else Verdict.MET,
            f"**Honest trace inputs, {results.data}.** {len(honest) - len(wrong)} of "
            f"{count(len(honest), 'trace')} came out right: guilty for our model, nobody for "
            "the twin.",
        )


def evidence(results: Results) -> Iterator[Finding]:
    rows = forgeries.evidence_rows(results.forgery)
    honest = {name: found for name, found in rows.items() if name == "honest"}
    forged = {name: found for name, found in rows.items() if name != "honest"}
    if not rows:
        return
    passed = [
        name for name, found in forged.items() if any(ACCEPTED in text for text in found.values())
    ]
    refused = [name for name, found in honest.items() if set(found.values()) != {ACCEPTED}]
    start = f"**Changed evidence, {results.data}.** "
    if refused:
        yield Finding(Verdict.MISSED, f"{start}Honest evidence was refused.")
    if passed:
        yield Finding(Verdict.MISSED, f"{start}Accepted: {listed(passed, len(passed))}.")
    else:
        yield Finding(Verdict.MET, f"{start}All {count(len(forged), 'kind')} of change refused.")
