"""Listening tests: a page that tells nothing, answers that are checked, statistics whose truth is known."""

from __future__ import annotations

import base64
import http.client
import json
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from listening_panel import answer, as_sent, rate_all, write_list

from valle import cli
from valle.errors import ValleError
from valle.eval.listening.answers import AnswerStore, ContradictionError, parse, read_answers
from valle.eval.listening.build import LEVEL_DB, Wanted, build, design
from valle.eval.listening.design import ListeningTest, Presentation
from valle.eval.listening.report import analyse, join, screen_raters
from valle.eval.listening.serve import MAX_BODY, ListeningServer
from valle.eval.listening.source import Sentence, read_sources, systems_of
from valle.eval.listening.stats import Rating, alpha, crossed_interval, holm, wilcoxon

SYSTEMS = ("recording", "old", "new")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole test of all three questions: four sentences, three systems, one repeat and one practice screen each."""
    here = tmp_path_factory.mktemp("listening")
    wanted = Wanted(kinds=("smos", "mos", "cmos"), n=4, repeats=1, title="Voices & <more>", with_text=True)
    build(read_sources([str(write_list(here, SYSTEMS, 5))]), wanted, here / "test")
    return here / "test"


@pytest.fixture(scope="module")
def made(folder: Path) -> ListeningTest:
    return ListeningTest.load(folder)


def sentences(n: int, systems: tuple[str, ...] = SYSTEMS) -> list[Sentence]:
    """Without files, for what needs none."""
    return [Sentence(f"t{i}", {name: Path("x.wav") for name in systems}, Path("p.wav")) for i in range(n)]


def panel_test(
    kinds: tuple[Any, ...], n: int, systems: tuple[str, ...] = SYSTEMS, repeats: float = 0.1
) -> ListeningTest:
    return design(sentences(n, systems), Wanted(kinds=kinds, n=n, repeats=repeats, n_training=0))[0]


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


# What there is to hear


def test_a_csv_list_and_its_mistakes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(2400) * 0.1, 24000)
    path = tmp_path / "list.csv"
    path.write_text("trial, system, path, reference, text\n1, mine, a.wav, a.wav, Hello\n2, mine, a.wav,,\n")
    first, second = read_sources([str(path)])
    assert first.waves == {"mine": tmp_path / "a.wav", "recording": tmp_path / "a.wav"}
    assert (first.text, second.waves) == ("Hello", {"mine": tmp_path / "a.wav"})
    for text, sentence in (
        ("trial,system,path\n1,mine,b.wav\n", "entry 1: there is no file"),
        ("trial,system,path\n1,mine,a.wav\n1,mine,a.wav\n", "entry 2 is the second wave of 'mine'"),
        ("trial,system\n1,mine\n", "entry 1 lacks path"),
        ("trial,system,path\n", "there is nothing to hear"),
    ):
        path.write_text(text)
        with pytest.raises(ValleError, match=sentence):
            read_sources([str(path)])
    with pytest.raises(ValleError, match="there is no"):
        read_sources([str(tmp_path / "nothing")])


def test_results_of_two_models_have_one_recording(tmp_path: Path) -> None:
    for name in ("one", "two"):
        wavs = tmp_path / name / "wavs"
        wavs.mkdir(parents=True)
        for label in ("0-prompt", "1-recording", "2-round-trip", "3-spoken"):
            (wavs / f"a-b_c-{label}.flac").touch()
        (wavs / "silent-0-prompt.flac").touch()
        (tmp_path / name / "trials.jsonl").write_text('{"id": "a/b_c", "text": "Hello."}\n')
    (tmp_path / "one" / "results.json").write_text('{"model": {"name": "valle-v9"}}')
    first, second = read_sources([str(tmp_path / "one"), f"other={tmp_path / 'two'}"])
    assert systems_of([first]) == ["recording", "codec round trip", "valle-v9", "other"]
    assert first.text == "Hello."
    assert first.prompt == tmp_path / "one" / "wavs" / "a-b_c-0-prompt.flac"
    assert second.waves == {}
    with pytest.raises(ValleError, match="two folders have speech of 'x'"):
        read_sources([f"x={tmp_path / 'one'}", f"x={tmp_path / 'two'}"])


# The screens


def test_screens_are_all_there_and_balanced() -> None:
    wanted = Wanted(kinds=("smos", "mos", "cmos"), n=6, repeats=0.25, n_training=2)
    test, heard = design(sentences(9), wanted)
    assert test.systems == SYSTEMS
    assert test.baseline == "old"
    counted = [p for p in test.presentations if not p.training and not p.repeat_of]
    assert Counter(p.kind for p in counted) == {"smos": 18, "mos": 18, "cmos": 12}
    assert len({p.trial for p in counted}) == 6
    assert not {p.trial for p in counted} & {p.trial for p in test.presentations if p.training}
    assert len({p.id for p in test.presentations}) == len(test.presentations)
    assert {s.id for s in heard} == {p.trial for p in test.presentations}
    for other in ("recording", "new"):
        pairs = [p for p in counted if p.kind == "cmos" and other in p.systems]
        assert Counter(p.systems[0] for p in pairs) == {other: 3, "old": 3}
    repeats = [p for p in test.presentations if p.repeat_of]
    assert Counter(p.kind for p in repeats) == {"smos": 5, "mos": 5, "cmos": 3}
    for repeat in repeats:
        first = test.by_id[repeat.repeat_of]
        assert first.trial == repeat.trial
        assert repeat.systems == first.systems[::-1]
    assert len({p.systems for p in repeats if p.kind == "mos"}) == 3  # not of one system only
    again = design(sentences(9), wanted)[0]
    assert [(p.kind, p.trial, p.systems) for p in again.presentations] == [
        (p.kind, p.trial, p.systems) for p in test.presentations
    ]
    assert not {p.id for p in again.presentations} & {p.id for p in test.presentations}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted(systems=("mine",)), "no speech of 'mine'"),
        (Wanted(systems=("old",), baseline="new"), "the baseline 'new' is not among"),
        (Wanted(repeats=1000), "is more than the"),
    ],
)
def test_designs_that_cannot_be(wanted: Wanted, sentence: str) -> None:
    with pytest.raises(ValleError, match=sentence):
        design(sentences(3), wanted)


def test_what_no_system_speaks_is_left_out() -> None:
    given = sentences(3)
    del given[0].waves["new"]
    given[1].prompt = None
    assert {p.trial for p in design(given, Wanted(kinds=("smos",)))[0].presentations} == {"t2"}
    with pytest.raises(ValleError, match="only recordings"):
        design(sentences(3, ("recording",)), Wanted())
    with pytest.raises(ValleError, match="CMOS compares two"):
        design(sentences(3, ("new",)), Wanted(kinds=("cmos",)))


# The page


def test_the_page_tells_nothing(folder: Path, made: ListeningTest) -> None:
    page = (folder / "page" / "index.html").read_text(encoding="utf-8")
    for word in (*SYSTEMS, "t0", "baseline", "repeat_of", str(folder)):
        assert word not in json.dumps(data_of(page)), word
    assert not re.search(r"https?://", page)
    items = data_of(page)["items"]
    assert {i["id"] for i in items} == set(made.by_id)
    assert all(set(item) == {"id", "kind", "sounds", "place", "text"} for item in items)
    names = {sound for item in items for sound in item["sounds"]}
    assert {f"audio/{path.name}" for path in (folder / "page" / "audio").iterdir()} == names
    assert all(re.fullmatch(r"audio/[0-9a-f]{16}\.wav", name) for name in names)
    assert sorted(path.name for path in (folder / "page").iterdir()) == ["audio", "index.html"]
    assert stat.S_IMODE((folder / "test.json").stat().st_mode) == 0o600
    # Two sounds of one sentence and system must not be known by their names; only a prompt is used again.
    used = Counter(sound for item in items for sound in item["sounds"][item["kind"] == "smos" :])
    assert set(used.values()) == {1}


def test_sounds_have_one_level_one_rate_and_no_tags(folder: Path) -> None:
    from valle.audio import level_db, load

    for path in (folder / "page" / "audio").iterdir():
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (24000, 1, "PCM_16")
        assert level_db(load(path).waveform, 24000) == pytest.approx(LEVEL_DB, abs=0.05)
        with soundfile.SoundFile(path) as file:
            assert not file.copy_metadata()


def test_the_policy_lets_only_the_pages_own_script_run(folder: Path) -> None:
    page = (folder / "page" / "index.html").read_text(encoding="utf-8")
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = found[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert body
        assert f"{tag}-src 'sha256-{base64.b64encode(sha256(body[1].encode()).digest()).decode()}'" in policy
    assert "<title>Voices &amp; &lt;more&gt;</title>" in page
    assert "Sentence <" not in page  # what comes from outside opens no tag
    assert any(item["text"].startswith("Sentence <") for item in data_of(page)["items"])


def test_one_file_to_send(tmp_path: Path) -> None:
    source = read_sources([str(write_list(tmp_path, ("mine",), 2, prompts=False))])
    build(source, Wanted(n=1, embed=True), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "page").iterdir()] == ["index.html"]
    (sound,) = data_of((tmp_path / "out" / "page" / "index.html").read_text())["items"][0]["sounds"]
    assert base64.b64decode(sound.removeprefix("data:audio/wav;base64,"))[:4] == b"RIFF"
    with pytest.raises(ValleError, match="holds a test already"):
        build(source, Wanted(n=1), tmp_path / "out")


def test_silence_is_no_sound(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("mine",), 1, prompts=False)
    soundfile.write(tmp_path / "mine" / "0.wav", np.zeros(2400), 24000)
    with pytest.raises(ValleError, match="is silent"):
        build(read_sources([str(path)]), Wanted(), tmp_path / "out")
    assert not (tmp_path / "out" / "test.json").exists()


# Answers


def sent(test: ListeningTest, rater: str = "anna", **others: Any) -> dict[str, Any]:
    """One right answer of each question, as the page sends them."""
    firsts = {p.kind: p for p in test.presentations}
    return {**as_sent(test, [answer(p, rater, 1) for p in firsts.values()]), **others}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": 6}, "whole number from"),
        ({"score": -4}, "whole number from"),
        ({"score": 2.5}, "whole number from"),
        ({"score": True}, "whole number from"),
        ({"score": "3"}, "whole number from"),
        ({"id": "none"}, "does not have"),
        ({"id": ["x"]}, "does not have"),
        ({"swapped": 1}, "swapped must be"),
        ({"heard": 9}, "heard and position"),
        ({"position": 10**6}, "heard and position"),
        ({"elapsed_s": -1}, "must be seconds"),
        ({"elapsed_s": float("inf")}, "must be seconds"),
        ({"elapsed_s": None}, "must be seconds"),
    ],
)
def test_what_is_no_answer(made: ListeningTest, change: dict[str, Any], sentence: str) -> None:
    values = sent(made)
    values["answers"][0].update(change)
    with pytest.raises(ValleError, match=sentence):
        parse(values, made)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"format": 2},
        {"test": "other"},
        {"rater": ""},
        {"rater": "a b"},
        {"rater": "x" * 41},
        {"rater": 1},
        {"answers": {}},
        {"answers": [1]},
        {"device": "a horn"},
    ],
)
def test_what_holds_no_answers(made: ListeningTest, values: Any) -> None:
    with pytest.raises(ValleError):
        parse({**sent(made), **values} if isinstance(values, dict) and values else values, made)


def test_an_answer_is_kept_once(made: ListeningTest, tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, made)
    answers = parse(sent(made), made)
    assert store.add(answers) == 3
    assert store.add(answers) == 0
    assert set(store.all()) == set(answers)
    assert set(store.answered("anna")) == {a.presentation for a in answers}
    other = answer(made.by_id[answers[0].presentation], "anna", 2)
    fresh = answer(next(p for p in made.presentations if p.id not in store.answered("anna")), "anna", 1)
    with pytest.raises(ContradictionError, match="differently before"):
        store.add([fresh, other])
    assert len(store.all()) == 3  # all or none
    with pytest.raises(ValleError, match="of another test"):
        AnswerStore(tmp_path, design(sentences(2), Wanted())[0])


def test_files_and_the_database_together(made: ListeningTest, tmp_path: Path) -> None:
    AnswerStore(tmp_path, made).add(parse(sent(made), made))
    path = tmp_path / "answers-bert.json"
    path.write_text(json.dumps(sent(made, "bert")))
    again = tmp_path / "answers-anna.json"
    again.write_text(json.dumps(sent(made, "anna", device="loudspeaker")))
    assert Counter(a.rater for a in read_answers(tmp_path, made, [path, again])) == {"anna": 3, "bert": 3}
    path.write_text("not JSON")
    with pytest.raises(ValleError, match=r"answers-bert\.json cannot be used"):
        read_answers(tmp_path, made, [path])
    with pytest.raises(ValleError, match="cannot be read"):
        read_answers(tmp_path, made, [tmp_path / "none.json"])


# The server


@pytest.fixture
def server(folder: Path) -> Iterator[ListeningServer]:
    for path in folder.glob("answers.sqlite*"):
        path.unlink()
    with ListeningServer(folder, port=0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: ListeningServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    reply = connection.getresponse()
    result = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return result


def post(server: ListeningServer, values: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    body = values if isinstance(values, bytes) else json.dumps(values).encode()
    status, _, reply = ask(server, "POST", "/answers", body, **{"Content_Type": "application/json", **headers})
    return status, json.loads(reply)


def test_the_server_gives_the_page_and_its_sounds(server: ListeningServer, folder: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, headers, body = ask(server, "GET", "/?rater=anna")
    assert status == 200
    assert body == (folder / "page" / "index.html").read_bytes()
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in headers
    wav = next((folder / "page" / "audio").iterdir())
    whole = wav.read_bytes()
    assert ask(server, "GET", f"/audio/{wav.name}")[::2] == (200, whole)
    status, headers, body = ask(server, "HEAD", f"/audio/{wav.name}")
    assert (status, headers["Content-Length"], body) == (200, str(len(whole)), b"")
    for asked, part in (("bytes=0-1", whole[:2]), ("bytes=10-", whole[10:]), ("bytes=-5", whole[-5:])):  # Safari's ways
        status, headers, body = ask(server, "GET", f"/audio/{wav.name}", Range=asked)
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith(f"/{len(whole)}")
    assert ask(server, "GET", f"/audio/{wav.name}", Range=f"bytes={len(whole)}-")[0] == 416
    assert ask(server, "GET", f"/audio/{wav.name}", Range="bytes=x")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/test.json",
        "/../test.json",
        "/audio/../../test.json",
        "/%2e%2e/test.json",
        "/audio/%2e%2e%2f%2e%2e%2ftest.json",
        "/answers.sqlite",
        "/audio",
        "/audio/",
        "/page/index.html",
        "//etc/passwd",
        "/audio/..\\..\\test.json",
        "/.",
    ],
)
def test_the_server_gives_nothing_else(server: ListeningServer, path: str) -> None:
    status, _, body = ask(server, "GET", path)
    assert (status, json.loads(body)) == (404, {"error": "there is nothing here"})


def test_the_server_keeps_answers_once(server: ListeningServer, made: ListeningTest, folder: Path) -> None:
    values = sent(made)
    assert post(server, values) == (200, {"stored": 3})
    assert post(server, values) == (200, {"stored": 0})
    assert len(AnswerStore(folder, made).all()) == 3
    status, _, body = ask(server, "GET", "/answers?rater=anna")
    assert status == 200
    assert set(json.loads(body)["answered"]) == {a["id"] for a in values["answers"]}
    assert json.loads(ask(server, "GET", "/answers?rater=bert")[2])["answered"] == []
    assert json.loads(ask(server, "GET", "/answers")[2])["answered"] == []
    values["answers"][0]["score"] = 2
    status, reply = post(server, values)
    assert status == 409
    assert "another one" in reply["error"]


def test_the_server_refuses_with_a_sentence(server: ListeningServer, made: ListeningTest, folder: Path) -> None:
    values = sent(made)
    refused = {
        400: [b"{", b"\xff", b"[" * 100_000, [], {**values, "test": "other"}, {**values, "rater": "'; DROP TABLE x"}],
        413: [b" " * (MAX_BODY + 1)],
    }
    for status, bodies in refused.items():
        for body in bodies:
            got, reply = post(server, body)
            assert got == status, body[:40] if isinstance(body, bytes) else body
            assert set(reply) == {"error"}
    assert post(server, values, Content_Type="text/plain")[0] == 415
    assert post(server, values, Origin="http://elsewhere.example")[0] == 403
    assert post(server, values, Content_Length="-1")[0] == 411
    assert post(server, values, Content_Length="9" * 30)[0] == 413
    assert ask(server, "POST", "/", b"{}")[0] == 404
    assert ask(server, "PUT", "/answers", b"{}")[0] == 405
    assert ask(server, "DELETE", "/answers")[0] == 405
    assert AnswerStore(folder, made).all() == []
    host = f"127.0.0.1:{server.server_address[1]}"
    assert post(server, values, Origin=f"http://{host}") == (200, {"stored": 3})


def test_many_raters_at_once(server: ListeningServer, made: ListeningTest, folder: Path) -> None:
    statuses: list[int] = []

    def rate(number: int) -> None:
        for screen in made.presentations[:5]:
            statuses.append(post(server, as_sent(made, [answer(screen, f"r{number}", 1)]))[0])

    threads = [threading.Thread(target=rate, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 30
    assert len(AnswerStore(folder, made).all()) == 30


def test_a_port_that_is_taken(server: ListeningServer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValleError, match="choose another --port"):
        ListeningServer(folder, port=server.server_address[1])
    with pytest.raises(ValleError, match="holds no listening test"):
        ListeningServer(tmp_path)


# Statistics


def test_alpha_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C with interval differences: 0.849."""
    coders = ("123321412...", "12332241 25.3", ".33323422 51.", "12332441 251.")
    rows = [row.replace(" ", "") for row in coders]
    assert {len(row) for row in rows} == {12}
    assert alpha({i: [float(row[i]) for row in rows if row[i] != "."] for i in range(12)}) == pytest.approx(
        0.849, abs=5e-4
    )


def test_alpha_at_its_ends() -> None:
    assert alpha({i: [i, i, i] for i in range(5)}) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    assert alpha({i: rng.normal(size=5).tolist() for i in range(400)}) == pytest.approx(0.0, abs=0.05)
    assert alpha({0: [1.0, 1.0], 1: [1.0, 1.0]}) is None
    assert alpha({0: [1.0], 1: [2.0]}) is None


@pytest.mark.parametrize("n", [1, 5, 9, 20])
def test_wilcoxon_against_scipy(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(n)
    for _ in range(5):
        differences = rng.normal(0.3, 1, n)
        expected = stats.wilcoxon(differences, method="exact").pvalue
        assert wilcoxon(differences.tolist()) == pytest.approx(expected, abs=1e-9)


def test_wilcoxon_with_ties_is_exact() -> None:
    differences = [1.0, 1.0, -1.0, 2.0, 2.0, 2.0, 0.0, -3.0, 1.0]
    ranks = np.asarray([2.5, 2.5, 2.5, 6, 6, 6, 8, 2.5])  # without the zero
    given = ranks[[0, 1, 3, 4, 5, 7]].sum()
    signs = (np.arange(256)[:, None] >> np.arange(8)) & 1  # [2^8, 8], every way in which the signs could have fallen
    sums = signs @ ranks
    expected = min(1.0, 2 * min((sums <= given).mean(), (sums >= given).mean()))
    assert wilcoxon(differences) == pytest.approx(expected)
    assert wilcoxon([0.0, 0.0]) == 1.0
    assert wilcoxon([]) is None
    many = np.random.default_rng(0).normal(0.1, 1, 200)
    assert wilcoxon([*many, 1e-3]) == pytest.approx(wilcoxon(many.tolist()), rel=0.1)  # the normal one goes on


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_the_interval_knows_raters_and_sentences() -> None:
    """A hundred sentences by two raters who differ: the raters' difference is in the interval, and nothing else."""
    ratings = [Rating(r, str(i), 3.0 + (r == "b")) for r in "ab" for i in range(100)]
    estimate = crossed_interval(ratings)
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (3.5, 3.0, 4.0, 200)
    assert crossed_interval([]) is None
    assert crossed_interval(ratings) == estimate


def test_the_interval_covers_the_truth() -> None:
    """Of 95 % intervals about so many hold the truth, with ten raters and ten sentences that both differ."""
    covered, n = 0, 120
    for seed in range(n):
        rng = np.random.default_rng(seed)
        raters, items = rng.normal(0, 0.5, 10), rng.normal(0, 0.5, 10)
        ratings = [
            Rating(str(r), str(i), raters[r] + items[i] + rng.normal(0, 0.8)) for r in range(10) for i in range(10)
        ]
        estimate = crossed_interval(ratings, seed=seed)
        assert estimate is not None
        covered += estimate.low <= 0 <= estimate.high
    assert covered / n > 0.87


# A panel whose truth is known


def test_cmos_finds_the_truth() -> None:
    """New is 0.8 better than old, and recordings 1.2: both intervals hold that in nearly all panels, and p is small."""
    test, covered, found, n = panel_test(("cmos",), 12), 0, 0, 25
    truth = {"recording": 1.2, "old": 0.0, "new": 0.8}
    for seed in range(n):
        results = analyse(test, rate_all(test, truth, 12, seed=seed))
        for comparison in results["kinds"]["cmos"]["comparisons"]:
            worth, estimate = truth[comparison["systems"][0]], comparison["difference"]
            assert comparison["systems"][1] == "old"
            covered += estimate.low <= worth <= estimate.high
            found += comparison["p_sentences_holm"] < 0.05 and comparison["p_raters_holm"] < 0.05
    assert covered / (2 * n) > 0.87
    assert found / (2 * n) > 0.9


def test_cmos_finds_nothing_where_nothing_is() -> None:
    test, false, n = panel_test(("cmos",), 12, ("old", "new")), 0, 40
    for seed in range(n):
        results = analyse(test, rate_all(test, {"old": 0.0, "new": 0.0}, 8, seed=seed))
        (comparison,) = results["kinds"]["cmos"]["comparisons"]
        false += comparison["p_sentences"] < 0.05 and comparison["p_raters"] < 0.05
    assert false / n <= 0.1


def test_the_side_does_not_matter() -> None:
    """A rater who always finds the second sound better says nothing of the systems."""
    test = panel_test(("cmos",), 10, ("old", "new"))
    answers = [answer(screen, f"r{r}", 2, swapped=bool(r % 2)) for r in range(4) for screen in test.presentations]
    numbers = analyse(test, answers)["kinds"]["cmos"]
    assert numbers["comparisons"][0]["difference"].mean == 0
    assert numbers["side"] == 2
    assert numbers["repeats"]["mean_difference"] == 4  # and is caught by the repeats, which come the other way round


def test_the_sign_of_cmos_by_hand() -> None:
    test = ListeningTest("id", ("recording", "old", "new"), "old", 0, (
        Presentation("p", "cmos", "t", ("old", "new"), 1.0, 2),
        Presentation("q", "cmos", "t", ("new", "old"), 1.0, 2, repeat_of="p"),
    ))  # fmt: skip
    for screen, swapped, score, value in (
        ("p", False, 2, 2),
        ("p", True, 2, -2),
        ("q", False, 2, -2),
        ("q", True, -1, -1),
    ):
        (heard,) = join([answer(test.by_id[screen], "r", score, swapped=swapped)], test)
        assert (heard.system, heard.value) == ("new", value)


def test_mos_finds_the_order() -> None:
    test = panel_test(("mos", "smos"), 12)
    truth = {"recording": 4.2, "old": 2.4, "new": 3.2}
    results = analyse(test, rate_all(test, truth, 10, bias=0.2, noise=0.4, sentence=0.2))
    for kind in ("mos", "smos"):
        numbers = results["kinds"][kind]
        means = {name: row["mean"].mean for name, row in numbers["systems"].items()}
        assert sorted(means, key=lambda name: -means[name]) == ["recording", "new", "old"]
        assert means == pytest.approx(truth, abs=0.25)
        assert all(c["p_sentences_holm"] < 0.05 and c["p_raters_holm"] < 0.05 for c in numbers["comparisons"])
        assert numbers["alpha"] > 0.4
        assert numbers["repeats"]["n"] == 40
        assert numbers["repeats"]["within_one"] > 0.7
    assert results["raters"]["r0"]["doubts"] == []


def test_doubtful_raters_are_told_and_left_out() -> None:
    test = panel_test(("mos",), 12, repeats=0.3)
    good = rate_all(test, {"recording": 4.2, "old": 2.4, "new": 3.2}, 8, bias=0.2, noise=0.4)
    chance = [answer(s, "dice", 1 if s.repeat_of else 5) for s in test.presentations]
    upside = [answer(s, "upside", 1 if "recording" in s.systems else 4) for s in test.presentations]
    hasty = [answer(s, "hasty", 5 if "recording" in s.systems else 3, heard=0) for s in test.presentations]
    raters = screen_raters(join([*good, *chance, *upside, *hasty], test))
    assert "repeats (mos)" in raters["dice"]["doubts"]
    assert raters["upside"]["doubts"] == ["reference (mos)"]
    assert raters["hasty"]["doubts"] == ["heard"]
    assert [name for name, row in raters.items() if not row["doubts"]] == [f"r{i}" for i in range(8)]
    everybody = analyse(test, [*good, *chance, *upside, *hasty])
    without = analyse(test, [*good, *chance, *upside, *hasty], leave_out=True)
    assert (everybody["n_raters"], without["n_raters"]) == (11, 8)
    assert without["kinds"] == analyse(test, good)["kinds"]


def test_training_counts_for_nothing(made: ListeningTest) -> None:
    answers = [answer(p, "r", 1) for p in made.presentations if p.training]
    assert len(answers) == 3
    assert join(answers, made) == []


# The command line


def test_from_list_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_list(tmp_path, ("recording", "new"), 6, seconds=0.1), tmp_path / "out"
    asked = ["--kind", "mos", "cmos", "--n", "5", "--training", "0"]
    assert cli.main(["eval", "listening", "build", str(source), "--out", str(out), *asked]) == 0
    test = ListeningTest.load(out)
    assert cli.main(["eval", "listening", "report", str(out)]) == 2
    assert "there are no answers" in capsys.readouterr().err
    answers = rate_all(test, {"recording": 1.5, "new": 1.0}, 6, bias=0.1, noise=0.2)
    AnswerStore(out, test).add([a for a in answers if a.rater != "r5"])
    (tmp_path / "r5.json").write_text(json.dumps(as_sent(test, [a for a in answers if a.rater == "r5"])))
    assert cli.main(["eval", "listening", "report", str(out), "--answers", str(tmp_path / "r5.json")]) == 0
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    for part in ("6 raters", "## MOS", "## CMOS", "| recording – new |", "Krippendorff", "| r5 |", "Doubtful is who"):
        assert part in text
    assert str(tmp_path) not in text
    results = json.loads((out / "report" / "results.json").read_text())
    assert results["kinds"]["mos"]["systems"]["recording"]["mean"]["n"] == 30


def test_help_tells_the_three(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["build", "--help"], ["serve", "--help"], ["report", "--help"]):
        assert cli.main(["eval", "listening", *command]) == 0
    assert "Krippendorff" not in capsys.readouterr().err
    assert cli.main(["eval", "listening", "build", "x", "--out", "y", "--n", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
