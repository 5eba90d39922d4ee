"""HTML pages that need nothing but their folder: the skeleton, its style for light, dark and phones, tables, players.

No page has a script or asks another host, and its policy forbids both. What is put in from outside is escaped.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:; media-src 'self' file: data:; "
    "base-uri 'none'; form-action 'none'"
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #566270; --paper: #fff; --line: #b9c3ce; --tint: #e8eff7;
  --key: #1b5fa8; --good: #1d7a3e; --bad: #a8281b }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #a7b3c0; --paper: #14191f; --line: #465361;
  --tint: #212c38; --key: #7db6f2; --good: #74cf92; --bad: #ff9a8c } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 1rem 1rem 3rem;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.3 } h2 { font-size: 1.25rem; margin-top: 2rem }
h3 { font-size: 1.05rem; margin: .3rem 0 } h4 { font-size: .95rem; margin: 0 0 .3rem } a { color: var(--key) }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tbody th { font-weight: inherit }
thead th { vertical-align: bottom } td { font-variant-numeric: tabular-nums }
pre { overflow-x: auto; font-size: .85rem; background: var(--tint); padding: .8rem }
code { font-size: .9em } .note, .interval { color: var(--soft) } img { max-width: 100%; background: #fff }
audio { display: block; width: 100%; height: 2.5rem; margin: .4rem 0 }
:focus-visible { outline: 3px solid var(--key); outline-offset: 2px }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page.

    Args:
        title: as text; it is escaped here.
        body: its parts, HTML.
        style: CSS after that of all pages, whose colours are ``--ink``, ``--soft``, ``--paper``, ``--line``,
            ``--tint``, ``--key``, ``--good`` and ``--bad``.
    """
    inner = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{inner}\n</main>\n</body>\n</html>\n"
    )


def table(rows: Sequence[Sequence[str]], label: str = "") -> str:
    """Cells of text: the first row heads the columns, the first cell of each other row heads the row.

    A table wider than the screen scrolls by itself, by keyboard too; ``label`` is what a screen reader calls it.
    """
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    label = label or ", ".join(cell for cell in rows[0] if cell)
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(label)}"><table>',
        "<thead><tr>"
        + "".join(f'<th scope="col">{c}</th>' if c else "<td></td>" for c in head)
        + "</tr></thead>\n<tbody>",
        *(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in body),
        "</tbody></table></div>",
    ]
    return "\n".join(lines)


def player(source: str, label: str) -> str:
    """A sound; ``source`` is of ``reference`` or ``embed``, ``label`` what a screen reader calls it."""
    return f'<audio controls preload="none" src="{html.escape(source)}" aria-label="{html.escape(label)}"></audio>'


def reference(path: str) -> str:
    """A file beside the page, by its relative path."""
    return quote(path)


def embed(path: Path) -> str:
    """A sound file inside the page: as MP3, which every browser plays (Opus in Ogg is silent in older Safari)."""
    return "data:audio/mpeg;base64," + base64.b64encode(to_mp3(path)).decode()


def to_mp3(path: Path) -> bytes:
    """A sound file, mono, as MP3 of about 60 kbit/s at 24 kHz; what it says of being synthetic it goes on saying.

    Raises:
        ValleError: it cannot be read.
    """
    from dataclasses import replace

    from valle.audio import load
    from valle.provenance import read_provenance

    audio = load(path, what="sound")
    told = read_provenance(path)
    return replace(audio, info={**told, "synthetic": True} if told else {}).to_bytes("mp3")


def from_markdown(text: str) -> list[str]:
    """The little of Markdown that our reports use, as parts of a page.

    Headings, paragraphs, tables, lists and code blocks, and inside them ``code`` and **bold**. All else stays text.
    """
    parts: list[str] = []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            block = _take(lines, lambda nxt: not nxt.startswith("```"))
            del lines[:1]
            parts.append(f'<pre tabindex="0">{html.escape(chr(10).join(block))}</pre>')
        elif heading := re.match("(#{1,4}) +(.*)", line):
            level = len(heading[1])
            parts.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
        elif line.startswith("|"):
            block = [line, *_take(lines, lambda nxt: nxt.startswith("|"))]
            parts.append(table([[c.strip() for c in row.strip("|").split("|")] for row in [block[0], *block[2:]]]))
        elif line.startswith("- "):
            block = [line, *_take(lines, lambda nxt: nxt.startswith("- "))]
            parts.append("<ul>" + "".join(f"<li>{_inline(item[2:])}</li>" for item in block) + "</ul>")
        elif line.strip():
            block = [line, *_take(lines, lambda nxt: bool(nxt.strip()) and not re.match(r"#{1,4} |```|\||- ", nxt))]
            parts.append(f"<p>{_inline(' '.join(block))}</p>")
    return parts


def _take(lines: list[str], wanted: Callable[[str], bool]) -> list[str]:
    """Take lines from the front as long as they are wanted."""
    taken = []
    while lines and wanted(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _inline(text: str) -> str:
    """Escaped, with ``code`` and **bold**; no mark works inside code."""
    pieces = re.split("`([^`]*)`", text)
    pieces[::2] = (re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(piece)) for piece in pieces[::2])
    pieces[1::2] = (f"<code>{html.escape(piece)}</code>" for piece in pieces[1::2])
    return "".join(pieces)


def _cell(text: str) -> str:
    """A cell; an interval after a number stands back."""
    return re.sub(r"^(\S+) (\[[^\]]*\])$", r'\1 <span class="interval">\2</span>', _inline(text))
