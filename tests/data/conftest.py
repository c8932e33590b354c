"""Where the tests find MNIST, a small realisation in its place, and a file server that misbehaves."""

import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from equiscale.data import digits_scale, mnist_scale
from equiscale.data.scale_recipe import encode_pngs, make_splits, pngs_checksum, splits_checksum

SOURCE_VARIABLE = "EQUISCALE_MNIST_SOURCE"


@pytest.fixture(scope="session")
def mnist_source() -> Path:
    """The folder of MNIST's four files; on CI the tests that need it fail without it."""
    chosen = os.environ.get(SOURCE_VARIABLE)
    if chosen and Path(chosen).is_dir():
        return Path(chosen)
    found = (
        f"{SOURCE_VARIABLE} names {chosen}, which is no folder" if chosen else f"{SOURCE_VARIABLE} is not set"
    )
    missing = f"{found}; set it to the folder of MNIST's four files"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def prepared_root(mnist_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six realisations, made once by worker processes."""
    root = tmp_path_factory.mktemp("prepared")
    mnist_scale.prepare(root, source=mnist_source)
    return root


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A root in which MNIST-scale's realisation 0 is one of 200 small digits."""
    images, labels = digits_scale._digit_pool()
    sizes = {"train": 100, "val": 20, "test": 80}
    splits = make_splits(images[:200], labels[:200], sizes=sizes, seed=0)
    monkeypatch.setattr(mnist_scale, "SPLIT_SIZES", sizes)
    monkeypatch.setattr(mnist_scale, "CHECKSUMS", (splits_checksum(splits),) * 6)
    monkeypatch.setattr(mnist_scale, "PUBLISHED_MD5", (pngs_checksum(encode_pngs(splits)),) * 6)
    monkeypatch.setattr(mnist_scale, "read_mnist_pool", lambda _: (images[:200], labels[:200]))
    return tmp_path / "root"


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """Serves one content under paths of several behaviours and remembers what it was asked.

    ``cuts`` is how many more transfers of ``/cut`` are closed in the middle.
    """
    files = SimpleNamespace(content=bytes(range(256)) * 2000, url="", ranges=[], cuts=1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            files.ranges.append((self.path, asked))
            if self.path == "/missing":
                self.send_error(404)
                return
            content = b"wrong" * 1000 if self.path == "/wrong" else files.content
            match = re.fullmatch(r"bytes=(\d+)-", asked or "")
            start = int(match[1]) if match and self.path != "/whole" else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                told = start + 1 if self.path == "/elsewhere" else start
                self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.send_body(content[start:])

        def send_body(self, body: bytes) -> None:
            if self.path == "/cut" and files.cuts > 0:
                files.cuts -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        files.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield files
        finally:
            http.shutdown()
            thread.join()
