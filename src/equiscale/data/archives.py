"""Members of .zip and .tgz archives of anyone, read one after the other: nothing is written, all is bounded.

What an archive says of itself is not believed: no member unpacks to more than it announced, no header is
longer than a limit, no archive has more members than a limit, and the whole of a .tgz is unpacked to a limit,
always forwards.
"""

import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple, NoReturn, Self, cast

from equiscale._files import check_zip_index

# Encrypted members are told by a RuntimeError, unknown methods by a NotImplementedError, which is one too;
# spoilt bzip2 by an OSError, and spoilt headers by errors of struct, wrong values and wrong places.
DAMAGES: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    MemoryError,
)

# Others unpack a few bytes to gigabytes in one step, which nothing bounds.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LONGEST_READ: Final = 8 << 20
_LONGEST_HEADER: Final = 1 << 16  # of names and of what else comes in front of a member of a .tgz
_MOST_MEMBERS: Final = 100_000
_HEADERS: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Member(NamedTuple):
    """An ordinary file in an archive.

    Args:
        name: Its path, as the archive tells it: to be compared with what is known, and never to be opened.
        size: Its announced size in bytes.
        open: Opens it for reading in parts; never without a bound.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]

    def read(self) -> bytes:
        """All of its bytes, in one bounded step, in which the checksum of a .zip is compared."""
        with self.open() as stream:
            content = stream.read(self.size + 1)
        if len(content) != self.size:
            raise EOFError(f"expected {self.size} bytes of {self.name!r}, got {len(content)}")
        return content


def archive_members(archive: Path, *, max_bytes: int) -> Iterator[Member]:
    """Every ordinary file of an archive in its order; links and folders are passed over.

    A member is read before the next one is asked for.

    Args:
        archive: A .zip or a .tgz, told apart by their bytes.
        max_bytes: Of a .tgz: the most bytes that it may unpack to, with all that is passed over.

    Yields:
        The members.

    Raises:
        Exception: One of `DAMAGES`, for an archive that is none, is damaged, or lies about itself.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as packed:
        ...     packed.writestr("a.txt", "three")
        >>> [(member.name, member.size, member.read()) for member in archive_members(path, max_bytes=100)]
        [('a.txt', 5, b'three')]
    """
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
        return
    with gzip.open(archive) as unpacked:
        forwards = cast(IO[bytes], _Forwards(unpacked, max_bytes))
        with tarfile.open(fileobj=forwards, mode="r:", tarinfo=_Header) as stream:
            yield from _tar_members(stream)


def _tar_members(stream: tarfile.TarFile) -> Iterator[Member]:
    count = 0
    while (member := stream.next()) is not None:
        count += 1
        if count > _MOST_MEMBERS:
            raise tarfile.ReadError(f"more than {_MOST_MEMBERS} members")
        # The library keeps every member, with a copy of what was said for all of them.
        stream.members = []  # type: ignore[attr-defined]
        stream.pax_headers = {}
        content = stream.extractfile(member) if member.isreg() else None
        if content is not None:
            yield Member(member.name, member.size, partial(_same, content))


def _same(stream: IO[bytes]) -> IO[bytes]:
    return stream


def _zip_members(archive: Path) -> Iterator[Member]:
    check_zip_index(archive)
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            if not entry.is_dir():
                yield Member(entry.filename, entry.file_size, partial(_open_entry, packed, entry))


def _open_entry(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    if entry.compress_type not in _METHODS:
        raise zipfile.BadZipFile(
            f"{entry.filename!r} is packed by method {entry.compress_type}, not deflated"
        )
    return packed.open(entry)


class _Header(tarfile.TarInfo):
    """A header that is short and of a member with all its bytes.

    Of a member with holes the library reads a map, as long as its header or its first bytes say, in front
    of any check.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and not 0 <= header.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header that announces {header.size} bytes")
        return header

    def _refuse(self, *_: object) -> NoReturn:
        raise tarfile.ReadError("a member with holes (sparse)")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


class _Forwards:
    """What tarfile needs of a file: short reads and steps forwards, up to a limit.

    Headers announce how many bytes of theirs follow, and where the next one is: gigabytes, or negative.
    """

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self.stream = stream
        self.max_bytes = max_bytes

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header that announces {size} bytes")
        self._check(self.tell() + size)
        return self.stream.read(size)

    def seek(self, place: int) -> None:
        if place < self.tell():
            raise tarfile.ReadError("a member that begins before the one in front of it")
        self._check(place)
        self.stream.seek(place)

    def _check(self, place: int) -> None:
        if place > self.max_bytes + tarfile.RECORDSIZE:
            raise tarfile.ReadError(f"more than {self.max_bytes} bytes, unpacked")
