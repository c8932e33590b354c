import contextlib
import hashlib
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from equiscale.data import download
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


# --- servers that lie ---


def answering(*answers: bytes) -> str:
    """The url of a server that answers its requests with these bytes, in turn."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(5)

    def serve() -> None:
        with listening, contextlib.suppress(OSError):
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/file"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a",
        "ftp://example.org/a",
        "https:///a",
        "http://127.0.0.1.example.org/a",
        "https://[x",
    ],
)
def test_nothing_but_tls_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"expected an https url, got '.*'; http is taken from this machine"
    ):
        fetch_file([url], tmp_path / "file")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://example.org/a", "expected a redirect to https, got one to 'http://example.org/a'"),
        ("ftp://example.org/a", "expected a redirect to https, got one to 'ftp://example.org/a'"),
        ("file:///etc/passwd", "HTTP 302 "),
        ("//[", "Invalid IPv6 URL"),
        (f"https://{'a' * 70}.org/", "label (empty or )?too long"),
    ],
)
def test_no_redirect_leads_out_of_tls(place: str, message: str, tmp_path: Path) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    url = answering(answer, answer, answer)
    with pytest.raises(DataError, match=f"from one of its mirrors, got none: .*{message}"):
        fetch_file([url], tmp_path / "file", checksum="md5:00", timeout=1)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_on_this_machine_is_followed(server: SimpleNamespace, tmp_path: Path) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {server.url}/good\r\nContent-Length: 0\r\n\r\n".encode()
    fetch_file([answering(answer)], tmp_path / "file", checksum=sha256(server.content))
    assert (tmp_path / "file").read_bytes() == server.content


@pytest.mark.parametrize("length", ["²", "-1", "1" * 5000, "x", "99999999999999999999"])
def test_a_length_that_is_none_is_not_believed(length: str, tmp_path: Path) -> None:
    answer = f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\nbytes".encode("latin-1")
    try:
        fetch_file([answering(*[answer] * 3)], tmp_path / "file", checksum=sha256(b"bytes"), timeout=1)
    except DataError:
        assert not (tmp_path / "file").exists()
    else:
        assert (tmp_path / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize("announced", [b"", b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_more_bytes_than_announced_or_allowed_are_not_taken(announced: bytes, tmp_path: Path) -> None:
    body = bytes(200_000)
    if b"chunked" in announced:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = b"HTTP/1.1 200 OK\r\n" + announced + b"\r\n" + body
    with pytest.raises(DataError, match=r"expected at most 1500 bytes, got|expected md5:00, found"):
        fetch_file([answering(*[answer] * 3)], tmp_path / "file", checksum="md5:00", max_bytes=1500)
    assert list(tmp_path.iterdir()) == []


def test_without_checksum_and_length_nothing_is_believed(tmp_path: Path) -> None:
    """A connection that was cut looks like one that has ended."""
    answer = b"HTTP/1.0 200 OK\r\n\r\nhalf a fi"
    with pytest.raises(DataError, match="expected the length of a file without a checksum, got none"):
        fetch_file([answering(answer)], tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    fetch_file([answering(answer)], tmp_path / "file", checksum=sha256(b"half a fi"))


def test_without_checksum_an_earlier_part_is_not_believed(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    fetch_file([f"{server.url}/good"], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.ranges == [("/good", None)]


def test_all_mirrors_that_failed_are_told_in_one_error(server: SimpleNamespace, tmp_path: Path) -> None:
    urls = [f"{server.url}/missing", f"{server.url}/wrong", f"{server.url}/missing?2"]
    with pytest.raises(ChecksumError) as caught:
        fetch_file(urls, tmp_path / "file", checksum="md5:00")
    assert all(url in str(caught.value) for url in urls)
    assert list(tmp_path.iterdir()) == []


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine that it has signed itself, with its key, made for this run."""
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs the program openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key -out cert"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls_url(certificate: Path, server: SimpleNamespace) -> Iterator[str]:
    """One file over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust us hangs up."""

    with Server(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://localhost:{http.server_address[1]}/file"
        http.shutdown()
        thread.join()


def test_a_server_that_no_one_vouches_for_is_not_believed(
    tls_url: str, server: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"file: .*certificate verify failed"):
        fetch_file([tls_url], tmp_path / "file", checksum=sha256(server.content), timeout=5)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_vouched_for_is(
    tls_url: str, server: SimpleNamespace, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    fetch_file([tls_url], tmp_path / "file", checksum=sha256(server.content), timeout=5)
    assert (tmp_path / "file").read_bytes() == server.content


@pytest.mark.parametrize(
    ("asked", "place", "followed"),
    [
        ("https://example.org/a", "https://example.com/b", True),
        ("https://example.org/a", "http://127.0.0.1:80/b", False),
        ("https://example.org/a", "http://localhost/b", False),
        ("https://example.org/a", "HTTP://[::1]/b", False),
        ("http://127.0.0.1/a", "http://localhost/b", True),
        ("http://127.0.0.1/a", "https://example.org/b", True),
        ("http://127.0.0.1/a", "http://example.org/b", False),
    ],
)
def test_a_server_elsewhere_leads_to_no_server_on_this_machine(
    asked: str, place: str, followed: bool
) -> None:
    request, headers = urllib.request.Request(asked), http.client.HTTPMessage()
    arguments = (request, io.BytesIO(), 302, "Found", headers, place)
    if followed:
        found = download._SafeRedirects().redirect_request(*arguments)
        assert found is not None
        assert found.full_url == place
    else:
        with pytest.raises(
            DataError, match=rf"expected a redirect to https, got one to {re.escape(repr(place))}"
        ):
            download._SafeRedirects().redirect_request(*arguments)
