"""The demo's page: what happened, for somebody who was not there, in one file."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple, TypeAlias


class Row(NamedTuple):
    """Of the summary: who, with what, and what they get of the model."""

    who: str
    holds: str
    gets: str


Summary: TypeAlias = dict[str, list[Row]]
"""Rows by the title of their group."""

FILES = {
    "Owner": (
        "keeps every secret",
        {
            "acme.authority": "secrets and ledger, sealed under a passphrase",
            "digits.keras": "the protected model, to train on; holds no secret",
        },
    ),
    "Host": (
        "runs the model on a stock server, and has one of",
        {
            "served/digits/2": "plain: answers in confused labels",
            "locked/digits/1": "locked: noise until a host's key is given to it",
            "hosted/digits/1": "for the owner's own server: answers are encrypted",
        },
    ),
    "Application": (
        "asks the host, and reads the answers without TensorFlow",
        {
            "alice.keybundle": "alice's key, sealed under her passphrase",
            "application.py": "all the program that it takes",
        },
    ),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fbfbf9; --card: #fff;
  --line: #d5dbe0; --soft: #56636f; --accent: #0b6e6e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14181c; --card: #1d2329;
  --line: #38424c; --soft: #a3b0bb; --accent: #5cc9c4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 52rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { margin: 2.8rem 0 .6rem; font-size: 1.3rem; }
p { max-width: 42rem; } .soft, figcaption { color: var(--soft); font-size: .92rem; }
.way { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--accent);
  border-radius: .5rem; padding: .9rem 1rem; }
.card h3 { margin: 0; } dl { margin: .6rem 0 0; } dt { font-weight: 600; }
dd { margin: 0 0 .5rem; color: var(--soft); font-size: .92rem; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: .5rem; background: #fff; }
table { width: 100%; border-collapse: collapse; background: var(--card); margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem;
  border: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; font-size: .92rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card);
  border: 1px solid var(--line);
  border-radius: .5rem; padding: .8rem 1rem; }
@media (max-width: 34rem) { thead { display: none; } tr { display: block; padding: .5rem 0;
  border: 1px solid var(--line); border-bottom: 0; } tbody tr:last-child { border-bottom: 1px solid
  var(--line); } th, td { display: block; border: 0; padding: .1rem .7rem; } }
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>encryip demo: a model that answers in confused labels</title>
<style>$style</style>
</head>
<body>
<h1>A model that answers in confused labels</h1>
<p>An owner trained a classifier of handwritten digits and protected it. Its answers now mean
nothing without a key. All figures on this page were measured when <code>encryip demo</code> ran, on
500 images that no model was trained on.</p>

<h2>Who receives which file</h2>
<div class="way">
$cards
</div>
<p class="soft">Only the passphrases of this demo are no secret: it prints them.</p>

<h2>One question, two readers</h2>
<p>The host computes one answer. It sees a distribution over confused labels: randomised numbers,
many for each class. alice adds up the labels of each class, which only her key knows.</p>
$one
$all
$readers

<h2>What a thief gets</h2>
<p>A thief who can label samples needs no key to learn from a plain model. This one labels one image
of each class, and gives every other image the class of the one that is most alike: in its pixels,
in the network's features or in its answers, whichever serves him best. Each figure is a mean over
$draws choices of the labelled images. Chance is 0.100.</p>
<p>The first row needs nothing of the owner's. The plain folder is worth far more: it keeps out
whoever has no labels, not this thief. The locked folder without its key is a network of random
numbers, and says no more of an image than its pixels do. The hosted service's answers are
noise. A thief who takes more trouble gets more out of pixels and of plain folders.</p>
$thief

<h2>Who leaked</h2>
<p>bob sells labels that he reads with his key. The owner asks his service for a few hundred trace
inputs. Their labels read differently for different users, so the answers point at one key.</p>
$trace
$traced

<h2>Summary</h2>
$summary

<h2>Try next</h2>
<pre><code>$hints</code></pre>
</body>
</html>
""")


def write_page(folder: Path, summary: Summary, hints: Iterable[str], *, draws: int) -> None:
    """Write `index.html`: one file, pictures inside, that loads nothing.

    Args:
        folder: the demo's, with its pictures.
        summary: all rows. The second, third and fourth group have sections of their own.
        hints: lines to try next.
        draws: how many choices of labelled samples the thief's accuracies are the means of.
    """
    _, readers, thief, traced = summary
    page = _PAGE.substitute(
        style=_STYLE,
        cards="\n".join(_card(who, *files) for who, files in FILES.items()),
        one=_picture(
            folder / "confused-labels.png",
            "One image, its distribution over confused labels, and the classes that alice reads.",
        ),
        all=_picture(
            folder / "all-answers.png",
            "All 500 answers, one dot where images of a class got a label. The host sees no "
            "pattern; the owner, who knows which label belongs to which class, does.",
        ),
        trace=_picture(
            folder / "trace.png",
            "Every dot is a user. Above the line, the chance that any of them is accused "
            "innocently is at most one in a million.",
        ),
        readers=_table({readers: summary[readers]}),
        thief=_table({thief: summary[thief]}),
        traced=_table({traced: summary[traced]}),
        summary=_table(summary),
        hints=escape("\n".join(hints)),
        draws=draws,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _card(who: str, does: str, files: Mapping[str, str]) -> str:
    listed = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{escape(what)}</dd>"
        for name, what in files.items()
    )
    return (
        f'<section class="card"><h3>{escape(who)}</h3><p class="soft">{escape(does)}</p>'
        f"<dl>{listed}</dl></section>"
    )


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    shown = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{shown}">'
        f"<figcaption>{shown}</figcaption></figure>"
    )


def _table(groups: Summary) -> str:
    return "\n".join(
        f"<table><caption>{escape(title)}</caption><thead><tr><th>who</th><th>holds</th>"
        f"<th>gets</th></tr></thead><tbody>{''.join(map(_line, rows))}</tbody></table>"
        for title, rows in groups.items()
    )


def _line(row: Row) -> str:
    who, holds, gets = map(escape, row)
    return f'<tr><th scope="row">{who}</th><td>{holds}</td><td>{gets}</td></tr>'
