"""Where the tests find MNIST, a small realisation in its place, and a file server that misbehaves."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equiscale.data import digits_scale, imagenette, mnist_scale, stl10
from equiscale.data.scale_recipe import encode_pngs, make_splits, pngs_checksum, splits_checksum

SOURCE_VARIABLE = "EQUISCALE_MNIST_SOURCE"


@pytest.fixture(scope="session")
def mnist_source() -> Path:
    """The folder of MNIST's four files; on CI the tests that need it fail without it."""
    return source(SOURCE_VARIABLE, "the folder of MNIST's four files", Path.is_dir)


@pytest.fixture(scope="session")
def imagenette_source() -> Path:
    """The zip of 96×96 WebP; on CI the tests that need it fail without it."""
    return source(imagenette.SOURCE_VARIABLE, "the file imagenette96.zip", Path.is_file)


def source(variable: str, what: str, fits: Callable[[Path], bool]) -> Path:
    chosen = os.environ.get(variable)
    if chosen and fits(Path(chosen)):
        return Path(chosen)
    found = f"{variable} names {chosen}, which is not {what}" if chosen else f"{variable} is not set"
    missing = f"{found}; set it to {what}"
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
def small_stl10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """STL-10's files with 60 training and 20 test images, whose checksums stand in for the published ones.

    ``images`` and ``labels`` are what was written, upright and from 0; ``folds`` the indices of each fold.
    """
    generator, files = np.random.default_rng(0), {}
    monkeypatch.setitem(stl10.SPLIT_SIZES, "train", 60)
    monkeypatch.setitem(stl10.SPLIT_SIZES, "test", 20)
    monkeypatch.setitem(stl10.FOLD_SIZES, "train", 12)
    monkeypatch.setitem(stl10.FOLD_SIZES, "test", 20)
    images, labels = {}, {}
    for split, count in stl10.SPLIT_SIZES.items():
        images[split] = generator.integers(0, 256, (count, *stl10.IMAGE_SHAPE), np.uint8)
        labels[split] = np.arange(count, dtype=np.uint8) % 10
        files[f"{split}_X.bin"] = images[split].transpose(0, 1, 3, 2).tobytes()  # column after column
        files[f"{split}_y.bin"] = (labels[split] + 1).tobytes()
    folds = [generator.permutation(60)[:12] for _ in range(10)]
    files["fold_indices.txt"] = "".join(" ".join(map(str, fold)) + " \n" for fold in folds).encode()
    files["class_names.txt"] = b"airplane\n"
    known = [replace(file, md5=hashlib.md5(files[file.name]).hexdigest()) for file in stl10.FILES]
    monkeypatch.setattr(stl10, "FILES", known)
    return SimpleNamespace(
        files=files, images=images, labels=labels, folds=folds, root=tmp_path / "root", folder=tmp_path
    )


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
            # "/longer" announces a byte that never comes.
            self.send_header("Content-Length", str(len(content) - start + (self.path == "/longer")))
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
