import dataclasses
import gzip
import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equiscale.data import mnist
from equiscale.data.mnist import (
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    MnistFile,
    download_mnist,
    parse_idx,
    read_file,
    read_mnist_pool,
)
from equiscale.errors import ChecksumError, DataError

MEND = "equiscale data prepare mnist-scale --download, or --source DIR"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Four small files in MNIST's place, packed in ``tmp_path``."""
    generator, files, contents = np.random.default_rng(0), [], {}
    for file in FILES:
        shape = (file.shape[0] // 10_000, *file.shape[1:])
        contents[file.name] = idx(generator.integers(0, 16, shape, np.uint8))
        packed = gzip.compress(contents[file.name])
        (tmp_path / f"{file.name}.gz").write_bytes(packed)
        md5, gz_md5 = (hashlib.md5(content).hexdigest() for content in (contents[file.name], packed))
        files.append(MnistFile(file.name, shape, md5, gz_md5))
    monkeypatch.setattr(mnist, "FILES", tuple(files))
    return contents


def small_file(name: str) -> MnistFile:
    return next(file for file in mnist.FILES if file.name == name)


def test_reads_packed_and_unpacked_files_and_pools_train_before_test(
    small: dict[str, bytes], tmp_path: Path
) -> None:
    images, labels = read_mnist_pool(tmp_path)
    assert (images.shape, labels.shape) == ((7, 28, 28), (7,))
    assert images[6].tobytes() == small[TEST_IMAGES.name][16:]
    assert labels[6] == small[TEST_LABELS.name][8]
    for name, content in small.items():
        (tmp_path / f"{name}.gz").unlink()
        (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_mnist_pool(tmp_path)[0], images)


def test_a_missing_file_is_named_with_the_mending_command(small: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=rf"t10k-labels-idx1-ubyte.gz or .* got neither; run: {MEND}"):
        read_mnist_pool(tmp_path)


def test_swapped_files_are_recognised(small: dict[str, bytes], tmp_path: Path) -> None:
    pairs = [
        ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
        ("t10k-images-idx3-ubyte", "train-images-idx3-ubyte"),
        ("train-labels-idx1-ubyte", "train-images-idx3-ubyte"),
    ]
    for name, other in pairs:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(small[other]))
        with pytest.raises(ChecksumError, match=rf"contents of {name} in .*got those of {other}; .*swapped"):
            read_file(tmp_path, small_file(name))


def test_truncated_files_are_recognised(small: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed, content = path.read_bytes(), small["train-images-idx3-ubyte"]
    path.write_bytes(packed[:-100])
    with pytest.raises(DataError, match=rf"whole gzip file in {path}, got a truncated one; run: {MEND}"):
        read_mnist_pool(tmp_path)
    path.write_bytes(gzip.compress(content[:-100]))
    message = (
        rf"expected {len(content)} bytes in {path}, got {len(content) - 100}: it is truncated; run: {MEND}"
    )
    with pytest.raises(DataError, match=message):
        read_mnist_pool(tmp_path)


def test_corrupt_files_are_recognised(small: dict[str, bytes], tmp_path: Path) -> None:
    path, content = tmp_path / "train-images-idx3-ubyte.gz", bytearray(small["train-images-idx3-ubyte"])
    path.write_bytes(b"no gzip file")
    with pytest.raises(DataError, match=rf"expected a gzip file in {path}, got: Not a gzipped file"):
        read_mnist_pool(tmp_path)
    packed = bytearray(gzip.compress(content))
    packed[40] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(DataError, match=rf"gzip file in {path}, got"):
        read_mnist_pool(tmp_path)
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))
    expected, found = small_file("train-images-idx3-ubyte").md5, hashlib.md5(content).hexdigest()
    with pytest.raises(
        ChecksumError, match=rf"MD5 {expected} of the unpacked {path}, got {found}: it is corrupt"
    ):
        read_mnist_pool(tmp_path)


def test_a_file_that_unpacks_to_too_much_is_not_read_to_its_end(
    small: dict[str, bytes], tmp_path: Path
) -> None:
    limit = max(file.size for file in mnist.FILES) + 1
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(10 * limit)))
    assert len(mnist._unpack(path)) == limit
    with pytest.raises(ChecksumError, match="it is corrupt"):
        read_mnist_pool(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no bytes; get the file again"),
        (b"PK\x03\x04 and more", "got 50 4b 03 04; get the file again"),
        (b"\x00\x00\x08\x09", "1 to 3 axes .* got 00 00 08 09"),
        (b"\x00\x00\x08\x01\x00", r"got 5; get the file again"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", r"expected 13 bytes .* shape \(5,\) announces, got 11"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12 + b"abc", r"as its header of shape \(4294967295, .*got 19"),
    ],
)
def test_a_wrong_header_is_refused_before_anything_is_allocated(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_idx(content, Path("file"))


def test_downloads_the_four_files_and_leaves_right_ones_alone(
    small: dict[str, bytes], server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packed = gzip.compress(small["train-images-idx3-ubyte"])
    server.content = packed
    only = (dataclasses.replace(mnist.FILES[0], gz_md5=hashlib.md5(packed).hexdigest()),)
    monkeypatch.setattr(mnist, "FILES", only)
    told: list[str] = []
    for _ in range(2):
        download_mnist(tmp_path / "new", mirrors=(f"{server.url}/",), progress=told.append)
    assert server.ranges == [("/train-images-idx3-ubyte.gz", None)]
    assert told == ["MNIST: train-images-idx3-ubyte.gz"] * 2
    assert read_file(tmp_path / "new", only[0]).shape == (6, 28, 28)


def test_the_original_files_have_their_known_sizes() -> None:
    assert [file.size for file in FILES] == [47_040_016, 60_008, 7_840_016, 10_008]


def test_reads_the_real_files(mnist_source: Path) -> None:
    images, labels = read_mnist_pool(mnist_source)
    assert (images.shape, labels.shape) == ((70_000, 28, 28), (70_000,))
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert labels[60_000:60_005].tolist() == [7, 2, 1, 0, 4]


def test_the_real_train_and_test_images_swapped_are_recognised(mnist_source: Path, tmp_path: Path) -> None:
    swapped = tmp_path / f"{TEST_IMAGES.name}.gz"
    swapped.symlink_to((mnist_source / f"{TRAIN_IMAGES.name}.gz").resolve())
    with pytest.raises(ChecksumError, match=f"got those of {TRAIN_IMAGES.name}; the files have been swapped"):
        read_file(tmp_path, TEST_IMAGES)
