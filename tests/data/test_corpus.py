"""Manifests: what is right is read, what is wrong is named with its line."""

import json

import numpy as np
import pytest
import soundfile

from valle.data.corpus import load_wav, read_manifest
from valle.errors import ValleError

LINE = {"id": "a", "path": "x/a.wav", "seconds": 2, "split": "train", "text": "Hello.", "speaker": None, "extra": [1]}


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n\n")
    return path


def test_reads_and_filters(tmp_path):
    write(tmp_path / "manifest.jsonl", LINE, {**LINE, "id": "b", "split": "dev", "text": None, "speaker": "s"})
    everything = read_manifest(tmp_path)  # a folder stands for its manifest
    assert [u.id for u in everything] == ["a", "b"]
    (dev,) = read_manifest(tmp_path / "manifest.jsonl", ["dev"])
    assert dev.path == tmp_path / "x" / "a.wav"
    assert (dev.seconds, dev.text, dev.speaker, dev.lang) == (2.0, None, "s", "en")


@pytest.mark.parametrize(
    ("records", "match"),
    [
        (["{"], "line 1 is not JSON"),
        ([LINE, "[1]"], "line 2 must be a JSON object"),
        ([{"id": "a"}], "line 1 lacks path, seconds, split"),
        ([{**LINE, "seconds": "2"}], "seconds is '2'; it must be int or float"),
        ([{**LINE, "text": 3}], "text is 3; it must be str or null"),
        ([LINE, LINE], "line 2: the id 'a' was used before"),
    ],
)
def test_errors_name_the_line(tmp_path, records, match):
    with pytest.raises(ValleError, match=match):
        read_manifest(write(tmp_path / "manifest.jsonl", *records))


def test_errors_name_the_remedy(tmp_path):
    with pytest.raises(ValleError, match="there is no manifest"):
        read_manifest(tmp_path / "absent.jsonl")
    path = write(tmp_path / "manifest.jsonl", LINE)
    with pytest.raises(ValleError, match="no utterance in the split test; its splits are train"):
        read_manifest(path, ["test"])


def test_loads_mono_at_the_codec_rate(tmp_path):
    (tmp_path / "x").mkdir()
    soundfile.write(tmp_path / "x" / "a.wav", np.full((16000, 2), 0.25), 16000)
    (utterance,) = read_manifest(write(tmp_path / "manifest.jsonl", LINE))
    wav = load_wav(utterance)
    assert wav.shape == (1, 24000)
    assert abs(float(wav[0, 12000]) - 0.25) < 1e-2
    utterance.path.unlink()
    with pytest.raises(ValleError, match="there is no"):
        load_wav(utterance)
