"""Downloads that are resumed, checked, and visible under their final name only when they are right."""

import hashlib
import http.client
import ipaddress
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, TypeAlias
from urllib.parse import urlsplit

from equiscale._files import publish
from equiscale.errors import ChecksumError, DataError, SettingError

Progress: TypeAlias = Callable[[int, int | None], None]

_CHUNK: Final = 1 << 16
_ATTEMPTS: Final = 3  # at one mirror, each going on where the last one was cut off
_DEFAULT_MAX_BYTES: Final = 4 << 30
_RANGE_NOT_SATISFIABLE: Final = 416
_ALGORITHMS: Final = ("md5", "sha256")
_REFUSALS: Final = (DataError,)
# Among the wrong values is an address of a redirect that is no name of a host.
_INTERRUPTIONS: Final = (OSError, http.client.HTTPException, ValueError)


def fetch_file(
    urls: Sequence[str],
    target: Path,
    *,
    checksum: str | None = None,
    max_bytes: int = _DEFAULT_MAX_BYTES,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> Path:
    """Download one file from the first mirror that delivers it.

    The bytes go to ``<target>.part``. A download that is cut off is resumed there, in this call or the next.
    The checksum is compared before the rename to ``target``; wrong bytes are deleted and the next mirror
    is asked. A ``target`` that is there already, with the right checksum, is left as it is. Without a
    checksum nothing that another call or mirror has left is believed, nor a file whose length no one told.

    Args:
        urls: The mirrors, in the order in which they are tried: https, also where they redirect to; http is
            taken from this machine alone.
        target: The final path.
        checksum: The expected checksum, ``"md5:…"`` or ``"sha256:…"``, or None for no check.
        max_bytes: The size limit in bytes.
        timeout: The longest silence of the server, in seconds.
        progress: Called with the bytes so far and in total (None when the server does not say).

    Returns:
        The target.

    Raises:
        SettingError: If a url is not https, none is given, or the checksum is not well formed.
        ChecksumError: If a mirror delivered wrong bytes and none delivered the right ones.
        DataError: If no mirror delivered the file.
    """
    _check_settings(urls, checksum)
    target = Path(target)
    if _has_checksum(target, checksum):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if _has_checksum(part, checksum):  # complete, but never renamed
        publish(part, target)
        return target
    failures: list[Exception] = []
    for url in urls:
        if checksum is None:
            part.unlink(missing_ok=True)
        transfer = _Transfer(
            url, part, checksum=checksum, max_bytes=max_bytes, timeout=timeout, progress=progress
        )
        if _fetch_from(transfer, failures):
            publish(part, target)
            return target
    raise _summary(target, failures)


def _fetch_from(transfer: "_Transfer", failures: list[Exception]) -> bool:
    """Whether this mirror delivered; what went wrong is added to ``failures``."""
    for _ in range(_ATTEMPTS):
        resumed = transfer.part.exists()
        try:
            transfer.run()
            _check_part(transfer)
        except _REFUSALS as error:
            failures.append(error)
            if not (resumed and isinstance(error, ChecksumError)):  # the wrong bytes may be an older mirror's
                return False
        except _INTERRUPTIONS as error:
            failures.append(ConnectionError(f"{transfer.url}: {error or type(error).__name__}"))
        else:
            return True
    return False


def _check_part(transfer: "_Transfer") -> None:
    found = file_checksum(transfer.part, transfer.checksum)
    if found != transfer.checksum:
        transfer.part.unlink()
        raise ChecksumError(f"{transfer.url}: expected {transfer.checksum}, found {found}")


def file_checksum(path: Path, like: str | None) -> str | None:
    """The checksum of a file with the algorithm of ``like``, as ``"<algorithm>:<hex>"``; None for None."""
    if like is None:
        return None
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"


def percent_lines(tell: Callable[[str], None], name: str, *, step: int = 5) -> Progress:
    """A progress that tells a line of text every few percent.

    Example:
        >>> progress = percent_lines(print, "numbers.tar", step=50)
        >>> for done in range(5):
        ...     progress(done << 20, 4 << 20)
        numbers.tar: 0 of 4 MiB
        numbers.tar: 2 of 4 MiB
        numbers.tar: 4 of 4 MiB
    """
    told: set[int] = set()

    def progress(done: int, total: int | None) -> None:
        mark = done * 100 // (step * total) if total else done >> 28
        if mark not in told:
            told.add(mark)
            tell(f"{name}: {done >> 20} of {total >> 20 if total else '?'} MiB")

    return progress


class _Transfer:
    """One mirror's bytes on their way to the part file."""

    def __init__(
        self,
        url: str,
        part: Path,
        *,
        checksum: str | None,
        max_bytes: int,
        timeout: float,
        progress: Progress | None,
    ) -> None:
        self.url = url
        self.part = part
        self.checksum = checksum
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.progress = progress

    def run(self) -> None:
        """Append what is missing to the part file, or start again where the server cannot resume."""
        offset = self.part.stat().st_size if self.part.exists() else 0
        headers = {"User-Agent": "equiscale", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                self._receive(response, self._resumed_at(response, offset))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != _RANGE_NOT_SATISFIABLE or not offset:
                raise DataError(f"{self.url}: HTTP {error.code} {error.reason}") from error
            if not _has_checksum(self.part, self.checksum):
                self.part.unlink()
                self.run()

    def _receive(self, response: http.client.HTTPResponse, offset: int) -> None:
        length = _announced(response)
        total = None if length is None else offset + length
        self._check_size(total or 0)
        if total is None and self.checksum is None and not response.chunked:
            raise DataError(f"{self.url}: expected the length of a file without a checksum, got none")
        size = offset
        with open(self.part, "ab" if offset else "wb") as stream:
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                self._check_size(size)
                stream.write(chunk)
                if self.progress:
                    self.progress(size, total)
        if total is not None and size < total:
            raise ConnectionError(f"the connection was closed after {size} of {total} bytes")

    def _resumed_at(self, response: http.client.HTTPResponse, offset: int) -> int:
        """Where the server goes on: at ``offset``, or at 0 when it ignores the range."""
        if response.status != http.client.PARTIAL_CONTENT:
            return 0
        if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            self.part.unlink(missing_ok=True)
            raise ConnectionError(f"the server resumed somewhere else than at byte {offset}")
        return offset

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            self.part.unlink(missing_ok=True)
            raise DataError(
                f"{self.url}: expected at most {self.max_bytes} bytes, got {size} or more; "
                "check the url, or raise max_bytes"
            )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect out of TLS, not even to this machine, nor to another protocol."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_safe(newurl) or (req.type == "https" and urlsplit(newurl).scheme != "https"):
            fp.close()
            raise DataError(f"{req.full_url}: expected a redirect to https, got one to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SafeRedirects)


def _is_safe(url: str) -> bool:
    """Whether a url is https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _is_here(host)))


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _announced(response: http.client.HTTPResponse) -> int | None:
    """The bytes that the server says it sends; None where it does not say."""
    length = response.headers.get("Content-Length") or ""
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _has_checksum(path: Path, checksum: str | None) -> bool:
    return checksum is not None and path.is_file() and file_checksum(path, checksum) == checksum


def _summary(target: Path, failures: Sequence[Exception]) -> DataError:
    kind = ChecksumError if any(isinstance(failure, ChecksumError) for failure in failures) else DataError
    told = "; ".join(str(failure) for failure in failures)
    return kind(
        f"expected {target.name} from one of its mirrors, got none: {told}; "
        f"try again later, or get the file by other means and put it at {target}"
    )


def _check_settings(urls: Sequence[str], checksum: str | None) -> None:
    if not urls or isinstance(urls, str):
        raise SettingError(f"expected a list of at least one url, got {urls!r}")
    for url in urls:
        if not _is_safe(url):
            raise SettingError(f"expected an https url, got {url!r}; http is taken from this machine alone")
    if checksum is None:
        return
    algorithm, _, digest = checksum.partition(":")
    if algorithm not in _ALGORITHMS or not re.fullmatch(r"[0-9a-f]+", digest):
        raise SettingError(
            f"expected a checksum like 'md5:…' or 'sha256:…' in lower-case hex, got {checksum!r}"
        )
