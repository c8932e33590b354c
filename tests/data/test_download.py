import hashlib
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from equiscale.data.download import fetch_file
from equiscale.errors import ChecksumError, DataError, SettingError


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_fetches_a_file_and_tells_the_progress(server: SimpleNamespace, tmp_path: Path) -> None:
    target, told = tmp_path / "new" / "file", []
    found = fetch_file(
        [f"{server.url}/good"],
        target,
        checksum=sha256(server.content),
        progress=lambda done, total: told.append((done, total)),
    )
    assert found == target
    assert target.read_bytes() == server.content
    assert list(target.parent.iterdir()) == [target]
    assert told == sorted(told)
    assert told[-1] == (len(server.content), len(server.content))


def test_a_finished_file_is_not_fetched_again(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "file"
    for _ in range(2):
        fetch_file([f"{server.url}/good"], target, checksum=sha256(server.content))
    assert len(server.ranges) == 1
    target.write_bytes(b"damaged")
    fetch_file([f"{server.url}/good"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content


def test_a_connection_cut_in_the_middle_is_resumed(server: SimpleNamespace, tmp_path: Path) -> None:
    target, half = tmp_path / "file", len(server.content) // 2
    fetch_file([f"{server.url}/cut"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert server.ranges == [("/cut", None), ("/cut", f"bytes={half}-")]


def test_a_later_call_resumes_what_an_earlier_one_left(server: SimpleNamespace, tmp_path: Path) -> None:
    target, server.cuts = tmp_path / "file", 3
    with pytest.raises(DataError, match=r"closed after 448000 of 512000 bytes; try again later") as caught:
        fetch_file([f"{server.url}/cut"], target, checksum=sha256(server.content))
    assert not isinstance(caught.value, ChecksumError)
    assert not target.exists()
    fetch_file([f"{server.url}/cut"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert server.ranges[-1] == ("/cut", "bytes=448000-")


@pytest.mark.parametrize(
    ("path", "asked"), [("/whole", ["bytes=1000-"]), ("/elsewhere", ["bytes=1000-", None])]
)
def test_starts_again_where_the_server_does_not_resume(
    path: str, asked: list[str | None], server: SimpleNamespace, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(server.content[:1000])
    fetch_file([f"{server.url}{path}"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert server.ranges == [(path, header) for header in asked]


def test_a_part_that_is_complete_already_is_kept(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(server.content)
    fetch_file([f"{server.url}/good"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert server.ranges == []
    assert list(tmp_path.iterdir()) == [target]


def test_a_part_that_becomes_complete_by_a_broken_transfer_is_kept(
    server: SimpleNamespace, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    fetch_file([f"{server.url}/longer"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert server.ranges == [("/longer", None), ("/longer", "bytes=512000-")]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 512_000, b"x" * 600_000])
def test_wrong_bytes_of_an_earlier_download_do_not_spoil_a_good_mirror(
    left: bytes, server: SimpleNamespace, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(left)
    fetch_file([f"{server.url}/good"], target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content


def test_a_missing_and_a_wrong_mirror_are_passed_over(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "file"
    urls = [f"{server.url}/missing", f"{server.url}/wrong", f"{server.url}/good"]
    fetch_file(urls, target, checksum=sha256(server.content))
    assert target.read_bytes() == server.content
    assert [path for path, _ in server.ranges] == ["/missing", "/wrong", "/good"]
    assert list(tmp_path.iterdir()) == [target]


def test_wrong_bytes_never_get_the_final_name(server: SimpleNamespace, tmp_path: Path) -> None:
    target, expected, found = tmp_path / "file", sha256(server.content), sha256(b"wrong" * 1000)
    message = (
        f"file from one of its mirrors, got none: {server.url}/wrong: expected {expected}, found {found}; try"
    )
    with pytest.raises(ChecksumError, match=message):
        fetch_file([f"{server.url}/wrong"], target, checksum=expected)
    assert list(tmp_path.iterdir()) == []


def test_names_every_mirror_that_failed(server: SimpleNamespace, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        message = (
            rf"{server.url}/missing: HTTP 404 Not Found; {dead}: .*refused.*put it at {tmp_path / 'file'}"
        )
        with pytest.raises(DataError, match=message):
            fetch_file([f"{server.url}/missing", dead], tmp_path / "file", checksum="md5:00")


def test_stops_at_the_size_limit(server: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected at most 1000 bytes, got 512000 or more; check the url"):
        fetch_file([f"{server.url}/good"], tmp_path / "file", max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_gives_up_on_a_silent_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DataError, match=r"timed out"):
            fetch_file([url], tmp_path / "file", timeout=0.1)


def test_refuses_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected an https url, got 'file:///etc/hosts'; http is taken"):
        fetch_file(["file:///etc/hosts"], tmp_path / "file")
    with pytest.raises(SettingError, match=r"expected a list of at least one url, got \[\]"):
        fetch_file([], tmp_path / "file")
    with pytest.raises(SettingError, match=r"expected a checksum like 'md5:…' .* got 'crc32:00'"):
        fetch_file(["http://127.0.0.1/"], tmp_path / "file", checksum="crc32:00")
