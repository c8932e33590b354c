"""Archives that lie about themselves are refused, in bounded memory and time."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from equiscale.data import archives, imagenette
from equiscale.data.archives import DAMAGES, archive_members
from equiscale.errors import DataError

NAME = "a/train/tench/1.png"
FEW = 4 << 20  # bytes of memory


def tgz(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1))
    return path


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def lying_zip(path: Path, announced: int, content: bytes) -> Path:
    """A member that unpacks to other bytes than both of its headers announce."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, content)
    changed = bytearray(path.read_bytes())
    right = struct.pack("<I", len(content))
    for place in (changed.find(right), changed.rfind(right)):
        changed[place : place + 4] = struct.pack("<I", announced)
    path.write_bytes(changed)
    return path


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(path: Path, message: str, *, most: int = FEW) -> None:
    def read() -> None:
        with pytest.raises(DataError, match=message):
            imagenette._read_members(path)

    assert peak(read) < most


def test_both_kinds_give_the_same_members_and_pass_over_folders_and_links(tmp_path: Path) -> None:
    files = {"x/1": b"one", "x/2": bytes(70_000), "x/3": b""}
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.mkdir("x")
        for name, content in files.items():
            packed.writestr(name, content)
    with tarfile.open(tmp_path / "b", "w:gz") as stream:
        for name, kind in (("x", tarfile.DIRTYPE), ("x/link", tarfile.SYMTYPE), ("x/hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            stream.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            stream.addfile(member, io.BytesIO(content))
    for kind in "ab":
        members = archive_members(tmp_path / kind, max_bytes=1 << 20)
        assert {member.name: member.read() for member in members} == files
        parts = (member.open().read(2) for member in archive_members(tmp_path / kind, max_bytes=1 << 20))
        assert list(parts) == [b"on", b"\0\0", b""]


@pytest.mark.parametrize("announced", [100, (4 << 20) - 1])
def test_a_member_never_unpacks_to_more_than_it_announced(tmp_path: Path, announced: int) -> None:
    bomb = lying_zip(tmp_path / "a.zip", announced, bytes(300 << 20))
    refused(bomb, "expected a whole .zip or .tgz archive in .*a.zip, got: ", most=32 << 20)


def test_a_member_that_unpacks_to_less_is_refused(tmp_path: Path) -> None:
    refused(lying_zip(tmp_path / "a.zip", 5000, bytes(4000)), r"got: (Bad CRC|expected 5000 bytes)")
    cut = header(NAME, 5000) + bytes(512)
    refused(tgz(tmp_path / "a.tgz", cut), r"got: (unexpected end of data|expected 5000 bytes of 'a/train)")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as packed:
        packed.writestr(NAME, bytes(1000))
    refused(tmp_path / "a.zip", rf"'{NAME}' is packed by method {method}, not deflated")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_announces_gigabytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    """The library reads such headers at once: 64 MiB of zeros are 300 kB packed."""
    bomb = header("x", 1 << 30, kind) + bytes(64 << 20)
    refused(tgz(tmp_path / "a.tgz", bomb), "got: a header that announces 1073741824 bytes", most=16 << 20)


@pytest.mark.timeout(20)
def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    """The library would read the same header for ever."""
    size = struct.pack(">q", -1024).rjust(12, b"\xff")
    block = bytearray(header("x", 0))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    refused(tgz(tmp_path / "a.tgz", bytes(block) * 3 + bytes(1024)), r"got: (a member that begins before|.*)")
    with pytest.raises(DAMAGES):
        list(archive_members(tmp_path / "a.tgz", max_bytes=1 << 20))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
def test_a_header_is_no_longer_than_names_need(tmp_path: Path, kind: bytes) -> None:
    long = tgz(tmp_path / "a.tgz", header("x", (1 << 16) + 1, kind) + bytes(1 << 17))
    refused(long, "got: a header that announces 65537 bytes")
    name = b"n" * 60_000 + bytes(5536)
    whole = header("x", 1 << 16, tarfile.GNUTYPE_LONGNAME) + name + header("x", 0) + bytes(1024)
    (member,) = archive_members(tgz(tmp_path / "b.tgz", whole), max_bytes=1 << 20)
    assert len(member.name) == 60_000


def sparse(kind: str) -> bytes:
    """A member with a map of a million holes, in each of the ways to write one."""
    if kind == "old":
        block = bytearray(header("x", 0, tarfile.GNUTYPE_SPARSE))
        block[482] = 1  # more of the map follows
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        more = bytearray(bytes(11) + b"1" + bytes(11) + b"1") * 21
        return bytes(block) + bytes(more + b"\1" + bytes(7)) * 50_000
    fields = {
        "0.0": {"GNU.sparse.size": "1", "GNU.sparse.numbytes": "1"},
        "0.1": {"GNU.sparse.map": ",".join(["1"] * 20_000)},
        "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
    }[kind]
    member = tarfile.TarInfo("x")
    member.size, member.pax_headers = 4 << 20, fields
    return member.tobuf(tarfile.PAX_FORMAT) + b"1000000\n" + b"0\n" * (2 << 20)


@pytest.mark.parametrize("kind", ["old", "0.0", "0.1", "1.0"])
def test_a_member_with_holes_is_refused_before_its_map_is_read(tmp_path: Path, kind: str) -> None:
    path = tgz(tmp_path / "a.tgz", sparse(kind))
    refused(path, r"expected a whole .zip or .tgz archive in .*a.tgz, got: a member with holes \(sparse\)")


def test_members_have_a_limit_and_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tgz(tmp_path / "a.tgz", b"".join(header(str(number), 0) for number in range(5000)))

    def count() -> int:
        return sum(1 for _ in archive_members(path, max_bytes=1 << 30))

    assert peak(count) < 1 << 20
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 5000)
    assert count() == 5000
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 4999)
    with pytest.raises(tarfile.ReadError, match="more than 4999 members"):
        count()


def test_what_is_said_of_all_members_is_not_kept(tmp_path: Path) -> None:
    content = b""
    for number in range(200):
        told = tarfile.TarInfo.create_pax_global_header({f"key{number}": "x" * 50_000})
        content += told + header(str(number), 0)
    path = tgz(tmp_path / "a.tgz", content)
    assert peak(lambda: sum(1 for _ in archive_members(path, max_bytes=1 << 30))) < FEW


def test_the_whole_of_an_archive_has_a_limit(tmp_path: Path) -> None:
    """Also what is passed over: a few hundred kilobytes are gigabytes of zeros, which take time."""
    content = header("passed over", 30 << 20) + bytes(30 << 20) + header(NAME, 0)
    path = tgz(tmp_path / "a.tgz", content)
    assert [member.size for member in archive_members(path, max_bytes=31 << 20)] == [30 << 20, 0]
    with pytest.raises(tarfile.ReadError, match="more than 1048576 bytes, unpacked"):
        list(archive_members(path, max_bytes=1 << 20))


def test_an_image_twice_is_refused(tmp_path: Path) -> None:
    """Also under both names of its class: which of the two counts would be anyone's guess."""
    for names in ((NAME, NAME), (NAME, NAME.replace("tench", "n01440764")), (NAME, f"./b/{NAME[2:]}")):
        content = b"".join(header(name, 0) for name in names)
        refused(tgz(tmp_path / "a.tgz", content), "expected every image once in .*a.tgz, got .*1.png twice")


def test_a_file_larger_than_any_archive_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.zip", "wb") as file:
        file.truncate((1 << 28) + 1)
    message = r"expected an archive of at most 268435456 bytes at .*a.zip, got 268435457"
    with pytest.raises(DataError, match=message):
        imagenette.prepare(tmp_path / "root", source=tmp_path / "a.zip")


def test_damaged_deflate_is_told(tmp_path: Path) -> None:
    content = bytearray(tgz(tmp_path / "a.tgz", header(NAME, 600) + bytes(1024)).read_bytes())
    content[30] ^= 255
    (tmp_path / "a.tgz").write_bytes(content)
    refused(tmp_path / "a.tgz", "expected a whole .zip or .tgz archive in .*a.tgz, got: ")
    assert issubclass(zlib.error, DAMAGES)
