"""A whole listening test in a real browser: played, rated by keyboard, reloaded in the middle, kept in SQLite.

Needs the package ``playwright`` and a Chromium: that of ``VALLE_CHROMIUM``, of the system, or playwright's own.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from listening_panel import write_list

from valle.eval.listening.answers import AnswerStore, parse
from valle.eval.listening.build import Wanted, build
from valle.eval.listening.design import ListeningTest
from valle.eval.listening.serve import ListeningServer
from valle.eval.listening.source import read_sources

playwright = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
PHONE, DESK = {"width": 375, "height": 667}, {"width": 1200, "height": 800}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    found = os.environ.get("VALLE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as running:
        try:
            browser = running.chromium.launch(executable_path=found, args=["--mute-audio"], chromium_sandbox=False)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("browser")
    source = read_sources([str(write_list(here, ("recording", "new"), 2, seconds=0.4))])
    build(source, Wanted(kinds=("smos", "mos", "cmos"), n=1, repeats=1, with_text=True), here / "test")
    return here / "test"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    for path in folder.glob("answers.sqlite*"):
        path.unlink()
    with ListeningServer(folder, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def open_page(browser: Any, address: str, size: dict[str, int]) -> tuple[Any, list[str]]:
    """A fresh page, and what it complains of or asks other hosts for."""
    page = browser.new_context(viewport=size, accept_downloads=True).new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = address.split("/")[2]
    page.on("request", lambda r: wrong.append(r.url) if r.url.split("/")[2] != own and r.url[:5] != "blob:" else None)
    page.goto(address)
    return page, wrong


def begin(page: Any, code: str) -> None:
    page.click("#begin")
    assert "listen with" in page.inner_text("#status")  # nothing goes on before everything is told
    page.fill("#code", code)
    page.select_option("#device", "headphones")
    page.check("#consent")
    page.click("#begin")


def until(page: Any, condition: str, seconds: float = 60.0) -> None:
    """Wait; not by ``wait_for_function``, whose ``eval`` the page's policy forbids."""
    end = monotonic() + seconds
    while not page.evaluate(condition):
        assert monotonic() < end, condition
        page.wait_for_timeout(50)


def rate(page: Any, n: int | None = None) -> None:
    """Answer n screens, all for None, by keyboard."""
    done = 0
    while n is None or done < n:
        page.wait_for_selector("#go, #next, #outcome")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing beyond the edge
        if page.query_selector("#outcome"):
            assert n is None
            return
        if page.query_selector("#go"):
            page.keyboard.press("Enter")
            continue
        item = page.evaluate("shown.item")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        assert page.inner_text("#status") == "Listen to the end first."
        assert page.evaluate("shown.item.id") == item["id"]
        for i in range(len(item["sounds"])):
            page.keyboard.press("Space")
            until(page, f"shown.heard.size > {i}")
        page.keyboard.press("Minus")
        page.keyboard.press("2")
        if item["kind"] == "cmos":
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        until(page, f"!shown || shown.item.id !== {json.dumps(item['id'])}")
        done += 1


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_whole_test(chromium: Any, url: str, folder: Path, size: dict[str, int]) -> None:
    test = ListeningTest.load(folder)
    page, wrong = open_page(chromium, f"{url}?rater=anna", size)
    assert page.input_value("#code") == "anna"
    begin(page, "anna")
    rate(page, 3)
    page.reload()
    page.wait_for_selector("#go, #next")
    assert page.inner_text("#count") == f"3 of {len(test.presentations)}"
    rate(page)
    assert "All your answers have arrived" in page.inner_text("#outcome")
    answers = AnswerStore(folder, test).all()
    assert {a.presentation for a in answers} == set(test.by_id)
    assert [a.position for a in answers] == list(range(len(answers)))
    for answer in answers:
        screen = test.by_id[answer.presentation]
        assert answer.score == (-1 if screen.kind == "cmos" else 2)
        assert answer.heard == screen.n_sounds
        assert answer.elapsed_s > 0.9 * screen.seconds
        assert answer.device == "headphones"
    firsts = {a.presentation: a.position for a in answers}
    assert all(firsts[p.repeat_of] < firsts[p.id] for p in test.presentations if p.repeat_of)
    assert page.context.cookies() == []
    # The same rater in another browser is asked, and goes on where the first one stopped.
    other, also_wrong = open_page(chromium, url, size)
    begin(other, "anna")
    other.click("text=Yes, go on")
    other.wait_for_selector("#outcome")
    assert wrong == also_wrong == []


def test_without_a_server(chromium: Any, folder: Path, tmp_path: Path) -> None:
    page, wrong = open_page(chromium, (folder / "page" / "index.html").as_uri(), PHONE)
    begin(page, "bert")
    rate(page)
    with page.expect_download() as waiting:
        page.click("#save")
    assert waiting.value.suggested_filename == "answers-bert.json"
    waiting.value.save_as(tmp_path / "answers.json")
    test = ListeningTest.load(folder)
    answers = parse(json.loads((tmp_path / "answers.json").read_text()), test)
    assert {a.presentation for a in answers} == set(test.by_id)
    assert wrong == []
