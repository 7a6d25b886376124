"""Archives from mirrors, each checked by its checksum."""

import hashlib
import http.server
import os
import threading

import pytest

from rmlib import UserError
from rmlib.datasets.download import download


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves archives; /cut/ stops half-way, /page/ answers with a web page, /wrong/ with other
    bytes.
    """

    content, requests = os.urandom(200_000), []

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.requests.append(kind)
        body = {"page": b"<html>", "wrong": b"x" * 1000}.get(kind, self.content)
        if kind == "gone":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "application/gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    Mirror.requests.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


MD5 = hashlib.md5(Mirror.content).hexdigest()


def test_download_tries_mirrors(mirror, tmp_path):
    urls = [
        f"{mirror}/{kind}/archive.tar.gz?download=1" for kind in ("gone", "page", "cut", "good")
    ]
    path = download("archive.tar.gz", MD5, urls, tmp_path)
    assert path.read_bytes() == Mirror.content
    assert Mirror.requests == ["gone", "page", "cut", "good"]
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar.gz"]


def test_wrong_bytes_are_not_kept(mirror, tmp_path):
    urls = [f"{mirror}/{kind}/archive.tar.gz" for kind in ("wrong", "good")]
    assert download("archive.tar.gz", MD5, urls, tmp_path).read_bytes() == Mirror.content
    assert Mirror.requests == ["wrong", "good"]


def test_own_mirror_first_and_a_clear_end(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("RMLIB_MIRROR", f"{mirror}/page")
    with pytest.raises(UserError, match="web page.*by hand.*RMLIB_MIRROR") as error:
        download("archive.tar.gz", MD5, [f"{mirror}/gone/archive.tar.gz"], tmp_path)
    assert Mirror.requests == ["page", "gone"] and "\n" not in str(error.value)
