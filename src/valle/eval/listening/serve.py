"""A small server for a listening test: it gives out the page and its sounds, and takes answers. Nothing else.

It is meant for one machine or a trusted net. For the open net put a web server with TLS in front; all addresses in the
page are relative, so that it may stand under any path.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from valle.errors import ValleError
from valle.eval.listening.answers import AnswerStore, ContradictionError, parse
from valle.eval.listening.design import AUDIO_FOLDER, PAGE_FOLDER, ListeningTest

MAX_BODY = 262_144
"""Bytes of one request: thousands of answers."""
_TIMEOUT_S = 30.0
_LINGER_S = 1.0
_LINGER_BYTES = 4 * MAX_BODY
_BLOCK = 65_536
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


class ListeningServer(ThreadingHTTPServer):
    """Serves one test. What it may give out is listed when it starts, and nothing is looked for on disk by name."""

    daemon_threads = True

    def __init__(self, folder: str | Path, host: str = "127.0.0.1", port: int = 8100) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            ValleError: there is no test in the folder, or the address cannot be had.
        """
        self.test = ListeningTest.load(folder)
        self.store = AnswerStore(folder, self.test)
        page = Path(folder) / PAGE_FOLDER
        if not (page / "index.html").is_file():
            raise ValleError(f"there is no page {page / 'index.html'}; build the test again")
        self.files = {"/": page / "index.html", "/index.html": page / "index.html"}
        for path in sorted((page / AUDIO_FOLDER).glob("*.wav")):
            self.files[f"/{AUDIO_FOLDER}/{path.name}"] = path
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValleError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell of."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ListeningServer
    protocol_version = "HTTP/1.1"
    server_version = "valle"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        address = urlsplit(self.path)
        if address.path == "/answers":
            self._answered(parse_qs(address.query).get("rater", []))
        elif address.path in self.server.files:
            self._file(self.server.files[address.path])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.close_connection = True  # whatever of the body is not read must not be taken for a request
        self._take()
        self._linger()

    def _take(self) -> None:
        if urlsplit(self.path).path != "/answers":
            return self._refuse(HTTPStatus.NOT_FOUND, "answers go to /answers")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers must be application/json")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            return self._refuse(HTTPStatus.FORBIDDEN, "answers are taken from this test's own page only")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or "Transfer-Encoding" in self.headers:
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "say with Content-Length how long the answers are")
        if len(length) > 9 or int(length) > MAX_BODY:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"answers may be {MAX_BODY} bytes at most")
        body = self.rfile.read(int(length))
        try:
            values = json.loads(body.decode())
        except (ValueError, RecursionError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "the answers are not JSON")
        try:
            n_new = self.server.store.add(parse(values, self.server.test))
        except ContradictionError as error:
            return self._refuse(HTTPStatus.CONFLICT, str(error))
        except ValleError as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except sqlite3.Error as error:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"the answers cannot be kept now ({error}); try again")
        self._json(HTTPStatus.OK, {"stored": n_new})

    def _not_allowed(self) -> None:
        self.close_connection = True
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET, HEAD and POST are known here")
        self._linger()

    def _linger(self) -> None:
        """Let the other side finish sending: closing with bytes unread would take the reply away from it."""
        left = _LINGER_BYTES
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            while left > 0 and (block := self.connection.recv(_BLOCK)):
                left -= len(block)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed

    def _answered(self, raters: list[str]) -> None:
        ids = self.server.store.answered(raters[0]) if raters else []
        self._json(HTTPStatus.OK, {"test": self.server.test.id, "answered": ids})

    def _file(self, path: Path) -> None:
        """A whole file, or the part that is asked for: Safari plays only what comes in parts."""
        try:
            file = path.open("rb")
        except OSError:
            return self._refuse(HTTPStatus.NOT_FOUND, "this file is gone")
        with file:
            size = path.stat().st_size
            first, end, status = 0, size, HTTPStatus.OK
            if found := _RANGE.fullmatch(self.headers.get("Range", "")):
                begin, last = found.groups()
                if begin:
                    first, end = int(begin), min(int(last) + 1 if last else size, size)
                elif last:
                    first = max(0, size - int(last))
                if first >= end:
                    self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                status = HTTPStatus.PARTIAL_CONTENT
            self.send_response(status)
            if status == HTTPStatus.PARTIAL_CONTENT:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.send_header("Content-Type", "audio/wav" if path.suffix == ".wav" else "text/html; charset=utf-8")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "private, max-age=86400" if path.suffix == ".wav" else "no-store")
            self.send_header("Content-Length", str(end - first))
            self.end_headers()
            if self.command == "HEAD":
                return None
            file.seek(first)
            left = end - first
            while left > 0 and (block := file.read(min(left, _BLOCK))):
                self.wfile.write(block)
                left -= len(block)
        return None

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._json(status, {"error": sentence})

    def _json(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        body = (json.dumps(values) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses of raters are kept nowhere."""


def serve(folder: str | Path, host: str, port: int) -> None:
    """Serve a test until interrupted.

    Raises:
        ValleError: as ``ListeningServer``.
    """
    with ListeningServer(folder, host, port) as server:
        sys.stdout.write(f"listening test at {server.url} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            answers = server.store.all()
            n_raters = len({answer.rater for answer in answers})
            sys.stdout.write(f"\nstopped; {len(answers)} answers of {n_raters} raters are in {server.store.path}\n")
