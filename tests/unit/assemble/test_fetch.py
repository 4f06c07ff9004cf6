# SPDX-License-Identifier: MIT
"""Tarballs by hash: parsing, resuming, and wrong contents, against a server on the loopback interface."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lab.assemble import fetch
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.output import Output

CONTENT = bytes(range(256)) * 4096
GOOD = hashlib.sha256(CONTENT).hexdigest()


class Server(HTTPServer):
    cut_after: int | None = None
    seen: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = self.server.cut_after or len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.seen = []
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def _tarball(server: Server, sha256: str = GOOD, path: str = "linux.tar.xz") -> fetch.Tarball:
    return fetch.Tarball(f"https://127.0.0.1:{server.server_port}/{path}", sha256)


@pytest.fixture(autouse=True)
def plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fetch._download
    monkeypatch.setattr(
        fetch, "_download", lambda where, to, out: original(where.replace("https://", "http://"), to, out)
    )


def test_download_enters_the_cache_once(server: Server, tmp_path: Path) -> None:
    cache, out = Cache(tmp_path), Output(quiet=True)
    assert fetch.fetch(_tarball(server), cache, out).read_bytes() == CONTENT
    assert fetch.fetch(_tarball(server), cache, out).read_bytes() == CONTENT
    assert server.seen == [""]


def test_a_broken_download_goes_on(server: Server, tmp_path: Path) -> None:
    cache, out = Cache(tmp_path), Output(quiet=True)
    server.cut_after = 300_000
    with pytest.raises(KitError):
        fetch.fetch(_tarball(server), cache, out)
    assert cache.lookup("download", GOOD) is None
    server.cut_after = None
    assert fetch.fetch(_tarball(server), cache, out).read_bytes() == CONTENT
    assert server.seen == ["", "bytes=300000-"]


def test_wrong_contents(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(KitError) as caught:
        fetch.fetch(_tarball(server, "0" * 64), cache, Output(quiet=True))
    assert caught.value.code == ExitCode.MISMATCH
    assert cache.lookup("download", "0" * 64) is None
    assert not list(tmp_path.rglob("linux.tar.xz")), "the wrong download is removed"


def test_missing_file_and_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="404"):
        fetch.fetch(_tarball(server, path="missing.tar.xz"), Cache(tmp_path), Output(quiet=True))
    with pytest.raises(KitError, match="cannot be reached"):
        fetch.fetch(fetch.Tarball("https://127.0.0.1:9/linux.tar.xz", GOOD), Cache(tmp_path), Output(quiet=True))


def test_names(tmp_path: Path) -> None:
    local = tmp_path / "linux.tar.xz"
    local.write_bytes(CONTENT)
    assert fetch.parse(str(local)) == fetch.Tarball(str(local), GOOD)
    assert fetch.parse(f"{local}#sha256={GOOD.upper()}").sha256 == GOOD


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("https://host.example/linux.tar.xz", ExitCode.USAGE),
        ("https://host.example/linux.tar.xz#sha256=12", ExitCode.USAGE),
        ("https://host.example/linux.zip#sha256=" + GOOD, ExitCode.USAGE),
        ("/no/such/file.tar.xz", ExitCode.USAGE),
        ("7.3", ExitCode.USAGE),
    ],
)
def test_bad_names(text: str, code: ExitCode) -> None:
    with pytest.raises(KitError) as caught:
        fetch.parse(text)
    assert caught.value.code == code


def test_local_file_with_another_hash(tmp_path: Path) -> None:
    local = tmp_path / "linux.tar.xz"
    local.write_bytes(b"other")
    with pytest.raises(KitError) as caught:
        fetch.parse(f"{local}#sha256={GOOD}")
    assert caught.value.code == ExitCode.MISMATCH
