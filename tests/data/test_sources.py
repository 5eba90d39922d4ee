"""Sources: every form of recordings on disk gives the same utterances, ids and splits on every machine."""

import json
import sys

import numpy as np
import pytest
import soundfile

from valle.data.sources import SourceConfig, guess_kind, hash_split, read_source, read_sources
from valle.errors import ValleError

LINE = {"id": "a", "path": "a.wav", "seconds": 2, "split": "test", "text": "Hello.", "speaker": "anna"}


def sound(path, seconds=0.5, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(int(seconds * rate), 0.1), rate)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def rows(source, *fields, config=None):
    return [tuple(getattr(u, f) for f in fields) for u in read_source(source, config)]


# --- folders


def test_folder_with_and_without_text(tmp_path):
    root = tmp_path / "mine"
    sound(root / "anna" / "b.wav")
    sound(root / "anna" / "a.flac", 1.0)
    text(root / "anna" / "a.txt", "What I\nsay.\n")
    sound(root / "top.wav")
    sound(root / "anna" / ".hidden.wav")
    text(root / "broken.wav", "not audio")
    assert guess_kind(root) == "folder"
    assert rows(root, "id", "text", "speaker", "seconds", "dataset") == [
        ("mine-broken.wav", None, None, 0.0, "mine"),
        ("mine-top.wav", None, None, 0.5, "mine"),
        ("mine-anna/a.flac", "What I say.", "mine/anna", 1.0, "mine"),
        ("mine-anna/b.wav", None, "mine/anna", 0.5, "mine"),
    ]
    assert rows(root, "id", config=SourceConfig(name="x"))[0] == ("x-broken.wav",)


def test_ids_do_not_depend_on_the_place(tmp_path, monkeypatch):
    for place in ("one", "two"):
        sound(tmp_path / place / "mine" / "anna" / "a.wav")
    fields = ("id", "speaker", "split")
    first, second = (rows(tmp_path / place / "mine", *fields) for place in ("one", "two"))
    monkeypatch.chdir(tmp_path / "one" / "mine")
    assert first == second == rows(".", *fields) == rows("folder:.", *fields)


def test_folders_of_splits_are_splits(tmp_path):
    sound(tmp_path / "train" / "wavs" / "anna" / "a.wav")
    sound(tmp_path / "validation" / "ben" / "b.wav")
    assert [r[1:] for r in rows(tmp_path, "id", "speaker", "split", config=SourceConfig(name="x"))] == [
        ("x/anna", "train"),
        ("x/ben", "dev"),
    ]


def test_folder_with_a_metadata_file(tmp_path):
    sound(tmp_path / "wavs" / "LJ1.wav")
    sound(tmp_path / "wavs" / "LJ2.wav")
    text(tmp_path / "metadata.csv", 'LJ1|"Mr. A|"Mister A\n')
    assert guess_kind(tmp_path) == "folder"
    assert rows(tmp_path, "text", "speaker") == [('"Mister A', None), (None, None)]
    text(tmp_path / "metadata.csv", "other|text\n")
    with pytest.raises(ValleError, match=r"metadata\.csv names no recording of its folder, its first is 'other'"):
        rows(tmp_path, "id")


def test_without_recordings(tmp_path):
    with pytest.raises(ValleError, match="holds no recordings"):
        read_source(tmp_path)
    with pytest.raises(ValleError, match="holds no recordings"):
        read_source(f"folder:{tmp_path}")


# --- lists


@pytest.mark.parametrize(
    "content",
    [
        "x/a.wav|anna|Hello, you.\nx/b.wav|ben|\n",
        "text|speaker|path\nHello, you.|anna|x/a.wav\n|ben|x/b.wav\n",
        'file_name,transcription,Speaker_ID\r\nx/a.wav,"Hello, you.",anna\r\nx/b.wav,,ben\r\n',
        "\ufeffclient_id\tpath\tsentence\nanna\tx/a.wav\tHello, you.\nben\tx/b.wav\t\n",
        '{"audio_filepath": "x/a.wav", "text": "Hello, you.", "speaker": "anna"}\n'
        '{"audio_filepath": "x/b.wav", "speaker": "ben"}\n',
    ],
)
def test_lists_in_any_form(tmp_path, content):
    sound(tmp_path / "x" / "a.wav")
    sound(tmp_path / "x" / "b.wav", 1.0)
    (path := tmp_path / "list.csv").write_bytes(content.encode())
    assert guess_kind(path) == "csv"
    assert rows(path, "id", "path", "text", "speaker", "seconds") == [
        ("list-x/a.wav", tmp_path / "x" / "a.wav", "Hello, you.", "list/anna", 0.5),
        ("list-x/b.wav", tmp_path / "x" / "b.wav", None, "list/ben", 1.0),
    ]


def test_lists_like_ljspeech(tmp_path):
    sound(tmp_path / "wavs" / "LJ1.wav")
    path = text(tmp_path / "metadata.csv", "LJ1|It was 1900|It was nineteen hundred\n")
    assert rows(path, "id", "text", config=SourceConfig(name="lj")) == [("lj-LJ1", "It was nineteen hundred")]


def test_paths_that_are_absolute_stay_out_of_ids(tmp_path):
    a, b = sound(tmp_path / "x" / "1" / "a.wav"), sound(tmp_path / "x" / "2" / "a.wav")
    path = text(tmp_path / "list.csv", f"path|text\n{a}|A\n{b}|B\n")
    assert rows(path, "id", "path") == [("list-1/a.wav", a), ("list-2/a.wav", b)]


def test_lists_with_splits(tmp_path):
    sound(tmp_path / "a.wav")
    lines = ["path|speaker|split", "a.wav|anna|validation", "b.wav|anna|", "c.wav|ben|train", "d.wav|ben|unlabelled"]
    path = text(tmp_path / "list.psv", "\n".join(lines))
    assert rows(path, "split") == [("dev",), ("dev",), ("train",), ("unlabelled",)]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        ("path|text\n", "a header and nothing else"),
        ("a.wav|x|y|z\n", "line 1 has 4 columns and no header"),
        ("path,text\na.wav,Hello, you.\n", "line 2 has 3 columns in place of 2"),
        ("a.wav|A\na.wav|B\n", "line 2: the recording 'a.wav' was named before"),
        ("path|text\n|A\n", "line 2 names no recording"),
        ("there.wav|A\n", "names recordings that are not there, such as .*there.wav"),
        ('{"path": "a.wav"}\n{"path"\n', "line 2 is not JSON"),
        ('{"path": "a.wav"}\n[1]\n', "line 2 must be a JSON object"),
        ('{"text": "A"}\n', "line 1 names no recording"),
        ("a.wav|\xe4".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_lists_that_are_wrong(tmp_path, content, match):
    sound(tmp_path / "a.wav")
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValleError, match=match):
        list(read_source(path))


# --- kinds


def test_manifests(tmp_path):
    text(tmp_path / "manifest.jsonl", json.dumps(LINE))
    for source in (tmp_path, tmp_path / "manifest.jsonl", f"manifest:{tmp_path}"):
        assert rows(source, "id", "split", "speaker") == [("a", "test", "anna")]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nowhere", "there is no source nowhere; give a folder"),
        ("folder:nowhere", "there is no nowhere"),
        ("tape:x", "the kind 'tape', which is not known; the kinds are librispeech"),
        ("csv:", "names no place; give csv:PATH"),
        ("me.doc", "no known kind of source"),
        ("csv:empty", "is no file"),
        ("librispeech:empty", "holds no librispeech: it has none of the folders"),
        ("vctk:empty", "holds no vctk: it has no speaker-info.txt"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, monkeypatch, source, match):
    if "librispeech" in source or "vctk" in source:
        pytest.importorskip("lhotse")
    monkeypatch.chdir(tmp_path)
    text(tmp_path / "me.doc", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValleError, match=match):
        read_source(source)


@pytest.mark.parametrize(("source", "package"), [("vctk", "lhotse"), ("hf", "datasets")])
def test_missing_packages_are_named(tmp_path, monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [n for n in sys.modules if n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValleError, match=rf"needs the Python package {package}.*pip install 'valle\[sources\]'"):
        read_source(f"{source}:{tmp_path}")


# --- splits


def test_splits_are_of_speakers_and_stable(tmp_path):
    config = SourceConfig(dev_share=0.3, test_share=0.2)
    for speaker in range(12):
        for i in range(3):
            sound(tmp_path / "mine" / f"s{speaker}" / f"{i}.wav", 0.01)
    before = dict(rows(tmp_path / "mine", "id", "split", config=config))
    by_speaker = {(u.speaker, u.split) for u in read_source(tmp_path / "mine", config)}
    assert len(by_speaker) == 12
    assert {split for _, split in by_speaker} == {"train", "dev", "test"}
    sound(tmp_path / "mine" / "new" / "a.wav")
    after = dict(rows(tmp_path / "mine", "id", "split", config=config))
    assert before.items() < after.items()
    one_by_one = SourceConfig(dev_share=0.3, split_by="utterance")
    assert len({(u.speaker, u.split) for u in read_source(tmp_path / "mine", one_by_one)}) > 13


def test_the_share_is_kept_and_the_hash_is_fixed():
    config = SourceConfig(dev_share=0.1, test_share=0.05)
    splits = [hash_split(f"speaker {i}", config) for i in range(4000)]
    assert 0.08 < splits.count("dev") / 4000 < 0.12
    assert 0.035 < splits.count("test") / 4000 < 0.065
    assert hash_split("ljspeech/ljspeech", SourceConfig()) == "train"
    with pytest.raises(ValleError, match="leave something to train on"):
        SourceConfig(dev_share=1.0)


def test_several_sources(tmp_path):
    sound(tmp_path / "a.wav")
    text(tmp_path / "one.csv", "path|speaker|split\na.wav|anna|test\n")
    text(tmp_path / "two.csv", "path|speaker\na.wav|anna\n")
    config = SourceConfig(name="x")
    with pytest.raises(ValleError, match=r"two\.csv has the id 'x-a\.wav', which a source before it has too"):
        read_sources([tmp_path / "one.csv", tmp_path / "two.csv"], config)
    text(tmp_path / "two.csv", "path|speaker|id\na.wav|anna|b\n")
    utterances = read_sources([tmp_path / "one.csv", tmp_path / "two.csv"], config)
    assert [(u.id, u.split) for u in utterances] == [("x-a.wav", "test"), ("x-b", "test")]


# --- published corpora


def libri(root, part, speaker, form):
    chapter = root / part / speaker / "7"
    if form == "librispeech":
        sound(chapter / f"{speaker}-7-0000.flac")
        text(chapter / f"{speaker}-7.trans.txt", f"{speaker}-7-0000 HELLO YOU\n")
    else:
        sound(chapter / f"{speaker}_7_000001_000000.wav")
        text(chapter / f"{speaker}_7.trans.tsv", f"{speaker}_7_000001_000000\tMr. A.\tMister A.\n")
        text(chapter / f"{speaker}_7.book.tsv", f"{speaker}_7_000001_000000\t20.5\n")


@pytest.mark.parametrize(
    ("form", "id", "spoken"),
    [
        ("librispeech", "librispeech-84-7-0000", "HELLO YOU"),
        ("libritts", "libritts-84_7_000001_000000", "Mister A."),
    ],
)
def test_librispeech_and_libritts(tmp_path, form, id, spoken):
    pytest.importorskip("lhotse")
    root = tmp_path / {"librispeech": "LibriSpeech", "libritts": "LibriTTS"}[form]
    libri(root, "train-clean-100", "19", form)
    libri(root, "dev-clean", "84", form)
    for source in (root, tmp_path, f"{form}:{root}"):
        assert rows(source, "speaker", "split") == [("librivox/19", "train"), ("librivox/84", "dev")]
    (utterance,) = read_source(root / "dev-clean")
    assert (utterance.id, utterance.text, utterance.seconds, utterance.dataset) == (id, spoken, 0.5, form)
    assert utterance.path.is_file()
    assert rows(root, "id", config=SourceConfig(parts=("dev-clean",))) == [(id,)]
    with pytest.raises(ValleError, match="has no part test-clean; it has train-clean-100, dev-clean"):
        read_source(root, SourceConfig(parts=("test-clean",)))


def test_libri_light_and_the_splits_of_its_readers(tmp_path):
    pytest.importorskip("lhotse")
    chapter = tmp_path / "light" / "small" / "84" / "book"
    sound(chapter / "one.flac", 2.0)
    about = {"speaker": "84", "voice_activity": [[0.1, 0.8], [1.0, 1.9]]}
    text(chapter / "one.json", json.dumps(about))
    assert rows(tmp_path / "light", "id", "text", "speaker", "seconds") == [
        ("librilight-small/84/book/one", None, "librivox/84", 2.0)
    ]
    libri(tmp_path / "LibriSpeech", "test-clean", "84", "librispeech")
    utterances = read_sources([tmp_path / "light", tmp_path / "LibriSpeech"])
    assert [u.split for u in utterances] == ["test", "test"]
    with pytest.raises(ValleError, match="librilight is not downloaded by lhotse"):
        read_source("librilight:absent", SourceConfig(download=True))


@pytest.mark.parametrize("newer", [False, True])
def test_vctk(tmp_path, newer):
    pytest.importorskip("lhotse")
    root = tmp_path / "VCTK-Corpus"
    who = "p225" if newer else "225"
    text(root / "speaker-info.txt", f"ID AGE GENDER ACCENTS REGION\n{who} 23 F English Southern England\n")
    text(root / "txt" / "p225" / "p225_001.txt", "Please call Stella.\n")
    name = "wav48_silence_trimmed/p225/p225_001_mic2.flac" if newer else "wav48/p225/p225_001.wav"
    sound(root / name, rate=48000)
    assert guess_kind(tmp_path) == "vctk"
    id = "vctk-p225_001_mic2" if newer else "vctk-p225_001"
    assert rows(root, "id", "text", "speaker") == [(id, "Please call Stella.", "vctk/p225")]


def test_ljspeech_and_what_a_recipe_finds_wrong(tmp_path):
    pytest.importorskip("lhotse")
    root = tmp_path / "LJSpeech-1.1"
    sound(root / "wavs" / "LJ001-0001.wav", rate=22050)
    text(root / "metadata.csv", "LJ001-0001|In 1900|In nineteen hundred\n")
    assert guess_kind(root) == guess_kind(tmp_path) == "ljspeech"
    assert rows(root, "id", "text", "speaker", "split") == [
        ("ljspeech-LJ001-0001", "In nineteen hundred", "ljspeech/ljspeech", "train")
    ]
    text(root / "metadata.csv", "LJ001-0001|In 1900\n")
    with pytest.raises(ValleError, match="lhotse's recipe for ljspeech cannot read"):
        list(read_source(root))


def test_only_what_is_missing_is_downloaded(tmp_path, monkeypatch):
    recipe = pytest.importorskip("lhotse.recipes.librispeech")
    asked = []

    def download(target, dataset_parts):
        asked.append((target, dataset_parts))
        libri(target / "LibriSpeech", dataset_parts[0], "19", "librispeech")

    monkeypatch.setattr(recipe, "download_librispeech", download)
    libri(tmp_path / "LibriSpeech", "dev-clean", "84", "librispeech")
    config = SourceConfig(parts=("dev-clean", "test-clean"), download=True)
    for _ in range(2):
        assert sorted(rows(f"librispeech:{tmp_path}", "split", config=config)) == [("dev",), ("test",)]
    assert asked == [(tmp_path, ["test-clean"])]


# --- Hugging Face


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set with its sound inside, and the package that reads it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()
    sounds = [sound(tmp_path / "w" / f"{i}.wav", 0.5 + i).read_bytes() for i in range(2)]
    columns = {
        "audio": [{"bytes": data, "path": f"{i}.wav"} for i, data in enumerate(sounds)],
        "sentence": ["Hello.", None],
        "speaker_id": [7, 8],
    }
    return datasets, datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())


def test_a_saved_data_set(tmp_path, hub):
    datasets, rows_ = hub
    datasets.DatasetDict(train=rows_, validation=rows_).save_to_disk(tmp_path / "set")
    config = SourceConfig(cache=tmp_path / "cache")
    assert guess_kind(tmp_path / "set") == "hf"
    found = list(read_source(tmp_path / "set", config))
    assert [(u.id, u.split, u.text, u.speaker, u.seconds) for u in found[:2]] == [
        ("set-train-00000000", "train", "Hello.", "set/7", 0.5),
        ("set-train-00000001", "train", None, "set/8", 1.5),
    ]
    assert [u.split for u in found[2:]] == ["dev", "dev"]
    assert found[0].path == tmp_path / "cache" / "set" / "set-train-00000000.wav"
    assert len(rows(tmp_path / "set", "id", config=SourceConfig(cache=tmp_path / "cache", parts=("train",)))) == 2
    with pytest.raises(ValleError, match="holds its recordings inside; give a folder"):
        list(read_source(tmp_path / "set"))
    with pytest.raises(ValleError, match="has no split test; it has train, validation"):
        read_source(tmp_path / "set", SourceConfig(parts=("test",)))


def test_parquet_files_and_what_is_none(tmp_path, hub):
    datasets, rows_ = hub
    (tmp_path / "set").mkdir()
    rows_.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    config = SourceConfig(cache=tmp_path / "cache", dev_share=0)
    assert guess_kind(tmp_path / "set") == "hf"
    for source in (tmp_path / "set", tmp_path / "set" / "train-00000-of-00001.parquet"):
        assert rows(source, "text", "split", config=config) == [("Hello.", "train"), (None, "train")]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValleError, match=r"the data set .*none cannot be opened"):
        read_source(f"hf:{tmp_path / 'none'}")
    datasets.Dataset.from_dict({"text": ["A"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(ValleError, match="has no audio among its columns text"):
        list(read_source(tmp_path / "texts"))


def test_a_data_set_is_streamed_by_its_name(tmp_path, monkeypatch):
    class Rows(list):
        features = None

    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*args, **options):
            asked.append((args, options))
            row = {"audio": {"array": [0.1] * 800, "sampling_rate": 16000}, "text": "A", "id": "x/1"}
            return {"train": Rows([row, {**row, "id": "x_1"}])}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    found = list(read_source("hf:org/speech/clean", SourceConfig(cache=tmp_path)))
    assert asked == [(("org/speech", "clean"), {"streaming": True})]
    assert [u.id for u in found] == ["speech-x/1", "speech-x_1"]
    assert len({u.path for u in found}) == 2
    assert found[0].seconds == pytest.approx(0.05)
