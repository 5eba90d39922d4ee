"""Pages: nothing from outside gets in unescaped or is asked for; the Markdown of our reports comes through whole."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import soundfile
import torch

from valle import page
from valle.audio import Audio
from valle.provenance import read_provenance


def test_a_page_asks_nobody_and_runs_nothing() -> None:
    text = page.page('<b>"T"</b>', ["<p>body</p>"], ".x { color: red }")
    assert "<title>&lt;b&gt;&quot;T&quot;&lt;/b&gt;</title>" in text
    assert "default-src 'none'" in text
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_a_table_has_heads_and_can_be_scrolled_by_keyboard() -> None:
    text = page.table([("", "WER %"), ("a <i>", "12.5 [10.0, 15.0]"), ("b", "**1**")], "rates")
    assert '<th scope="col">WER %</th>' in text
    assert '<th scope="row">a &lt;i&gt;</th>' in text
    assert '<td>12.5 <span class="interval">[10.0, 15.0]</span></td>' in text
    assert "<strong>1</strong>" in text
    assert '<div class="wide" tabindex="0" role="region" aria-label="rates">' in text


def test_markdown_of_a_report() -> None:
    text = "# T <x>\n\nOne `a **b**` and **c**\ngoes on.\n| r | w |\n|---|---|\n| a | 1 |\nAfter.\n\n- x\n- y\n\n"
    text += "```\nS  <script>\n| no | table |\n\n# no heading\n```\n## End\n"
    parts = page.from_markdown(text)
    assert parts[0] == "<h1>T &lt;x&gt;</h1>"
    assert parts[1] == "<p>One <code>a **b**</code> and <strong>c</strong> goes on.</p>"
    assert re.findall("<t[hd](?: [^>]*)?>(.*?)</t[hd]>", parts[2]) == ["r", "w", "a", "1"]
    assert parts[3:5] == ["<p>After.</p>", "<ul><li>x</li><li>y</li></ul>"]
    assert parts[5] == '<pre tabindex="0">S  &lt;script&gt;\n| no | table |\n\n# no heading</pre>'
    assert parts[6:] == ["<h2>End</h2>"]


def test_a_player_has_a_name_and_a_quoted_source() -> None:
    text = page.player(page.reference('wavs/a #1 "x".flac'), 'said "it" <now>')
    assert 'src="wavs/a%20%231%20%22x%22.flac"' in text
    assert 'aria-label="said &quot;it&quot; &lt;now&gt;"' in text
    assert 'preload="none"' in text


@pytest.mark.parametrize("info", [{"synthetic": True, "model": "parrot", "seed": 7}, {}])
def test_an_embedded_sound_is_the_sound_and_says_what_it_is(tmp_path: Path, info: dict[str, object]) -> None:
    wav = 0.3 * torch.sin(torch.arange(24000) * 0.05)[None]
    Audio(wav, 24000, info=info).save(tmp_path / "a.flac")
    head, _, body = page.embed(tmp_path / "a.flac").partition(",")
    assert head == "data:audio/mpeg;base64"
    (tmp_path / "b.mp3").write_bytes(base64.b64decode(body))
    assert soundfile.info(tmp_path / "b.mp3").duration == pytest.approx(1, abs=0.1)
    told = read_provenance(tmp_path / "b.mp3")
    assert (told or {}).get("model") == info.get("model")
    assert (told or {}).get("seed") == ("7" if info else None)
