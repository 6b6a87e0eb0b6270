"""Published files arrive whole or not at all, are what was recorded, and open nothing but what was asked for.

A server on this machine stands in for those of the owners.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mkc_fast import ArgumentError, DownloadError, MkcError, OutputError, StoppedError
from mkc_fast.cli import main
from mkc_fast.engine.datasets.path_lists import read_named_paths
from mkc_fast.export import build_bank
from mkc_fast.export.downloads import archive, fetch, transfer
from mkc_fast.export.downloads.fetch import Fetched
from mkc_fast.export.downloads.table import PUBLISHED, Published, published
from mkc_fast.export.random_checkpoints import Checkpoints

BLOCK = 1 << 14


@dataclass
class Served:
    """What the server holds, how it misbehaves, and what it was asked for."""

    url: str = ""
    content: bytes = b""
    etag: str | None = '"one"'
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers end
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    page: str | None = None  # before the file, as Google Drive has it
    asked: list[str | None] = field(default_factory=list)  # the Range of each request
    sent: int = 0


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if state.cuts:
                body = body[: state.cuts.pop(0)]
            state.sent += len(body)
            self.wfile.write(body)

        def do_CONNECT(self) -> None:  # as a proxy
            state.asked.append(self.path)
            self.send_error(403)

        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range"))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
            elif state.redirect is not None:
                self.answer(302, "text/plain", b"", Location=state.redirect)
            elif state.page is not None and "confirm=t" not in self.path:
                self.answer(200, "text/html; charset=utf-8", state.page.encode())
            else:
                self.file()

        def file(self) -> None:
            headers = {} if state.etag is None else {"ETag": state.etag}
            wanted = self.headers.get("Range")
            same = self.headers.get("If-Range") in {None, state.etag}
            if wanted is None or not state.ranges or not same:
                self.answer(200, state.kind, state.content, **headers)
                return
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            size = len(state.content)
            if begin >= size:
                self.send_error(416)
                return
            headers["Content_Range"] = f"bytes {begin}-{size - 1}/{size}"
            self.answer(206, state.kind, state.content[begin:], **headers)

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "_WAIT_S", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/file"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def wavlm(served: Served, checkpoints: Checkpoints) -> Published:
    served.content = checkpoints.wavlm.read_bytes()
    return published("wavlm", served.url)


def models_of(checkpoints: Checkpoints) -> dict[str, bytes]:
    """The models as members of the published archive."""
    data = [path.read_bytes() for path in sorted(checkpoints.kmeans_scp.parent.rglob("*.pt")) if "kmeans" in str(path)]
    data = data or [Path(line.split()[1]).read_bytes() for line in checkpoints.kmeans_scp.read_text().splitlines()]
    users = {f"user/speaker-{number}.pt": model for number, model in enumerate(data[:3])}
    return {**users, "attacker/LibriSpeech_wavlm_k1000_L7.pt": data[3]}


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
            file.addfile(info, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return made.getvalue()


def bring(file: Published, out: Path, **options: object) -> Fetched:
    return fetch.fetch(file, out, accept_terms=True, **options)  # type: ignore[arg-type]


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} - {".downloads.lock"} if out.exists() else set()


def record_of(out: Path) -> dict[str, dict[str, object]]:
    return json.loads((out / "downloads.json").read_text())["files"]


def test_a_file_arrives_whole_and_is_recorded(wavlm: Published, served: Served, tmp_path: Path) -> None:
    got = bring(wavlm, tmp_path / "out")
    digest = hashlib.sha256(served.content).hexdigest()
    assert (got.path.read_bytes(), got.sha256, got.was_there) == (served.content, digest, False)
    assert names(tmp_path / "out") == {"WavLM-Large.pt", "downloads.json"}
    entry = record_of(tmp_path / "out")["wavlm"]
    assert entry.pop("date")
    assert entry == {
        "address": served.url,
        "bytes": len(served.content),
        "sha256": digest,
        "owner": wavlm.owner,
        "terms_accepted": wavlm.terms,
        "files": {"WavLM-Large.pt": digest},
    }


def test_a_file_that_is_there_as_recorded_is_not_downloaded_again(
    wavlm: Published, served: Served, tmp_path: Path
) -> None:
    bring(wavlm, tmp_path)
    served.asked.clear()
    assert bring(wavlm, tmp_path).was_there
    assert served.asked == []


def test_a_connection_that_is_cut_off_is_continued(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.cuts = [BLOCK, 3 * BLOCK]
    assert bring(wavlm, tmp_path).path.read_bytes() == served.content
    assert served.asked == [None, f"bytes={BLOCK}-", f"bytes={4 * BLOCK}-"]
    assert served.sent == len(served.content), "no byte was sent twice"


def test_the_next_call_continues_where_the_last_one_stopped(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.cuts = [BLOCK, *[0] * 8]
    with pytest.raises(StoppedError, match=rf"stopped after {BLOCK} bytes .*run the same command to continue"):
        bring(wavlm, tmp_path)
    assert names(tmp_path) == {"WavLM-Large.pt.part", "WavLM-Large.pt.part.json"}
    served.cuts, served.asked = [], []
    assert bring(wavlm, tmp_path).path.read_bytes() == served.content
    assert served.asked == [f"bytes={BLOCK}-"]


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_file_that_changed_on_the_server_is_not_joined_to_an_old_beginning(
    etag: str | None, wavlm: Published, served: Served, tmp_path: Path
) -> None:
    served.etag, whole = etag, served.content
    served.content, served.cuts = b"\0" * (len(whole) + 7), [BLOCK, *[0] * 8]
    with pytest.raises(StoppedError):
        bring(wavlm, tmp_path)
    served.content, served.cuts, served.etag = whole, [], etag and '"two"'
    assert bring(wavlm, tmp_path).path.read_bytes() == whole


def test_another_address_does_not_continue_a_download(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.cuts = [BLOCK, *[0] * 8]
    with pytest.raises(StoppedError):
        bring(wavlm, tmp_path)
    served.cuts, served.asked = [], []
    bring(replace(wavlm, address=f"{served.url}/other"), tmp_path)
    assert served.asked == [None]


def test_a_server_without_ranges_begins_again(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.ranges, served.cuts = False, [BLOCK]
    assert bring(wavlm, tmp_path).path.read_bytes() == served.content


def test_a_server_that_is_busy_is_asked_again(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.statuses = [503, 429]
    bring(wavlm, tmp_path)
    assert len(served.asked) == 3


def test_a_missing_file_is_one_line(wavlm: Published, served: Served, tmp_path: Path) -> None:
    served.statuses = [404]
    with pytest.raises(DownloadError, match="answers 404 Not Found"):
        bring(wavlm, tmp_path)
    assert len(served.asked) == 1
    assert names(tmp_path) == set()


def test_without_accepted_terms_nothing_is_asked_for(wavlm: Published, served: Served, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="its terms were not accepted"):
        fetch.fetch(wavlm, tmp_path / "out", accept_terms=False)
    assert served.asked == []
    assert not (tmp_path / "out").exists()


def test_accepted_terms_are_remembered_in_the_folder_only(wavlm: Published, tmp_path: Path) -> None:
    bring(wavlm, tmp_path / "one")
    assert not fetch.needs_terms(wavlm, tmp_path / "one")
    assert fetch.needs_terms(replace(wavlm, terms="others"), tmp_path / "one")
    assert fetch.needs_terms(wavlm, tmp_path / "two")


def test_a_file_changed_since_is_refused_and_left_as_it_is(wavlm: Published, served: Served, tmp_path: Path) -> None:
    got = bring(wavlm, tmp_path)
    got.path.write_bytes(b"changed")
    served.asked.clear()
    expected = f"SHA-256 is {hashlib.sha256(b'changed').hexdigest()}, expected {got.sha256}"
    with pytest.raises(DownloadError, match=expected):
        bring(wavlm, tmp_path)
    assert (got.path.read_bytes(), served.asked) == (b"changed", [])


def test_a_download_that_differs_from_the_record_is_refused(
    wavlm: Published, served: Served, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    got = bring(wavlm, tmp_path)
    got.path.unlink()
    served.content = checkpoints.ckpt.read_bytes()
    with pytest.raises(DownloadError, match=f"not the expected file: .*, expected {got.sha256}"):
        bring(wavlm, tmp_path)
    assert names(tmp_path) == {"WavLM-Large.pt.refused", "downloads.json"}
    assert record_of(tmp_path)["wavlm"]["sha256"] == got.sha256


def test_a_digest_that_is_asked_for_or_published_is_demanded(wavlm: Published, served: Served, tmp_path: Path) -> None:
    digest = hashlib.sha256(served.content).hexdigest()
    with pytest.raises(ArgumentError, match="expected 64 hexadecimal digits"):
        bring(wavlm, tmp_path, sha256="12")
    for file, asked in ((wavlm, "0" * 64), (replace(wavlm, sha256="0" * 64), None)):
        with pytest.raises(DownloadError, match=f"SHA-256 is {digest}, expected {'0' * 64}"):
            bring(file, tmp_path, sha256=asked)
    assert bring(wavlm, tmp_path, sha256=digest.upper()).sha256 == digest
    with pytest.raises(DownloadError, match="cannot be all of these"):
        bring(wavlm, tmp_path, sha256="0" * 64)


def test_a_file_that_is_not_ours_is_not_touched(wavlm: Published, served: Served, tmp_path: Path) -> None:
    (tmp_path / "WavLM-Large.pt").write_bytes(b"mine")
    with pytest.raises(OutputError, match="already there, and not recorded"):
        bring(wavlm, tmp_path)
    assert ((tmp_path / "WavLM-Large.pt").read_bytes(), served.asked) == (b"mine", [])


def test_a_file_of_another_kind_does_not_get_the_name(
    wavlm: Published, served: Served, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    served.content = checkpoints.ckpt.read_bytes()
    with pytest.raises(DownloadError, match="not WavLM-Large: not a WavLM checkpoint"):
        bring(wavlm, tmp_path)
    assert names(tmp_path) == {"WavLM-Large.pt.refused"}


def test_a_conformer_is_read_as_one(served: Served, checkpoints: Checkpoints, tmp_path: Path) -> None:
    served.content = checkpoints.ckpt.read_bytes()
    assert bring(published("conformer", served.url), tmp_path).path.name == "librispeech_conformer_e_50.pth"


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_a_web_page_in_place_of_the_file_is_refused(
    kind: str, wavlm: Published, served: Served, tmp_path: Path
) -> None:
    served.content, served.kind = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>", kind
    with pytest.raises(DownloadError, match="a web page came in place of the file"):
        bring(wavlm, tmp_path)
    assert "WavLM-Large.pt" not in names(tmp_path)


def test_the_page_of_google_drive_is_followed_and_the_file_continued(
    wavlm: Published, served: Served, tmp_path: Path
) -> None:
    pytest.importorskip("gdown")
    hidden = '<input type="hidden" name="id" value="x"><input type="hidden" name="confirm" value="t">'
    served.page = f'<html><body>\n<form id="download-form" action="{served.url}" method="get">{hidden}</form></body>'
    served.cuts = [10_000, BLOCK]  # of the page, then of the file
    assert bring(replace(wavlm, kind="google-drive"), tmp_path).path.read_bytes() == served.content
    assert served.asked[-1] == f"bytes={BLOCK}-"


def test_the_page_of_google_drive_about_too_many_downloads_is_one_line(
    wavlm: Published, served: Served, tmp_path: Path
) -> None:
    pytest.importorskip("gdown")
    served.page = (
        '<html><body>\n<p class="uc-error-subcaption">Too many users have viewed this file.</p>\n</body></html>'
    )
    with pytest.raises(DownloadError, match="a web page came in place of the file"):
        bring(replace(wavlm, kind="google-drive"), tmp_path)
    assert "WavLM-Large.pt" not in names(tmp_path)


def test_a_page_that_leads_to_an_address_without_encryption_is_refused(
    wavlm: Published, served: Served, tmp_path: Path
) -> None:
    pytest.importorskip("gdown")
    served.page = '<form id="download-form" action="http://192.0.2.1/file"></form>'
    with pytest.raises(DownloadError, match="only addresses that begin with https"):
        bring(replace(wavlm, kind="google-drive"), tmp_path)


@pytest.mark.parametrize("where", ["http://192.0.2.1/file", "ftp://127.0.0.1/file", "file:///etc/passwd"])
def test_only_encrypted_addresses_are_opened(where: str, wavlm: Published, served: Served, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="only addresses that begin with https"):
        bring(published("wavlm", where), tmp_path)
    served.redirect = where
    with pytest.raises(MkcError, match=r"https|not allowed"):
        bring(wavlm, tmp_path)
    assert names(tmp_path) == set()


def test_a_server_whose_certificate_is_not_valid_gets_no_request(tmp_path: Path, served: Served) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout"]
    subprocess.run([*command, str(key), "-out", str(certificate)], check=True, capture_output=True)
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DownloadError, match="the server's certificate is not valid"):
            bring(published("wavlm", f"https://localhost:{server.server_port}/file"), tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_the_proxy_that_the_environment_names_is_used(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", served.url.removesuffix("/file"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(StoppedError, match="403"):
        bring(published("wavlm", "https://192.0.2.1/file"), tmp_path)
    assert set(served.asked) == {"192.0.2.1:443"}


def test_a_file_larger_than_expected_is_refused_before_it_is_sent(
    wavlm: Published, served: Served, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="expected at most 1000"):
        bring(replace(wavlm, max_bytes=1000), tmp_path)


def test_a_file_downloaded_by_other_means_passes_the_same_gates(
    wavlm: Published, served: Served, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)  # without a connection, it is not needed
    got = bring(wavlm, tmp_path, source=checkpoints.wavlm)
    assert got.path.read_bytes() == checkpoints.wavlm.read_bytes()
    assert record_of(tmp_path)["wavlm"]["address"] == f"a file named {checkpoints.wavlm.name}"
    with pytest.raises(DownloadError, match="not conformer"):
        bring(published("conformer"), tmp_path, source=checkpoints.wavlm)
    assert served.asked == []


def test_a_damaged_record_is_one_line(wavlm: Published, served: Served, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format_version": 2}', '{"format_version": 1, "files": {"wavlm": {}}}'):
        (tmp_path / "downloads.json").write_text(text)
        with pytest.raises(DownloadError, match="not a readable record"):
            bring(wavlm, tmp_path)
    assert served.asked == []


def test_a_kill_between_record_and_name_is_repaired(
    wavlm: Published, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return renamed(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(wavlm, tmp_path)
    assert "WavLM-Large.pt" not in names(tmp_path)
    served.asked.clear()
    assert bring(wavlm, tmp_path).path.read_bytes() == served.content
    assert served.asked == [], "the whole file was there under its temporary name"


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "nested"])
def test_the_archive_becomes_folders_and_lists_that_a_bank_is_built_from(
    form: str, served: Served, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    members = models_of(checkpoints)
    other: dict[str, bytes] = {"README.md": b"hello", "__MACOSX/user/._x.pt": b"x", "user/.DS_Store": b"x"}
    if form == "nested":
        served.content = zipped({f"kmeans/{name}": data for name, data in members.items()} | other)
    else:
        pack = {"zip": zipped, "tar": lambda m: tarred(m, "w"), "tar.gz": tarred}[form]
        served.content = pack(members | other)
    kmeans = published("kmeans", served.url)
    got = bring(kmeans, tmp_path)
    assert names(tmp_path) == {"kmeans", "downloads.json"}
    found = {str(path.relative_to(got.path)): path.read_bytes() for path in got.path.rglob("*.pt")}
    assert found == members
    assert [path.name for path in got.lists] == ["kmeans_user.scp", "kmeans_attacker.scp"]
    assert [name for name, _ in read_named_paths(got.lists[1])] == ["LibriSpeech_wavlm_k1000_L7"]
    assert build_bank(got.lists[0], tmp_path / "bank", cache=False).names == ["speaker-0", "speaker-1", "speaker-2"]
    served.asked.clear()
    assert bring(kmeans, tmp_path).was_there
    assert served.asked == []
    (got.path / "user" / "speaker-1.pt").write_bytes(b"changed")
    with pytest.raises(DownloadError, match=r"speaker-1\.pt: was changed"):
        bring(kmeans, tmp_path)


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


EVIL: dict[str, bytes | tarfile.TarInfo] = {
    "../user/a.pt": b"x",
    "user/../../user/a.pt": b"x",
    "/tmp/user/a.pt": b"x",
    "user\\..\\user/a.pt": b"x",
    "C:/user/a.pt": b"x",
    "user/a b.pt": b"x",
    "user/a\nb.pt": b"x",
    "user/link.pt": link("user/link.pt", tarfile.SYMTYPE),
    "user/hard.pt": link("user/hard.pt", tarfile.LNKTYPE),
    "user/fifo.pt": link("user/fifo.pt", tarfile.FIFOTYPE),
    "user/device.pt": link("user/device.pt", tarfile.CHRTYPE),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_member_that_could_leave_the_folder_refuses_the_archive(
    name: str, served: Served, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    served.content = tarred({**models_of(checkpoints), name: EVIL[name]})
    with pytest.raises(DownloadError, match=r"not k-means models: refused: "):
        bring(published("kmeans", served.url), tmp_path / "out")
    assert names(tmp_path / "out") == {"kmeans.refused"}
    assert names(tmp_path) == {"out"}


def test_a_link_in_a_zip_refuses_the_archive(served: Served, tmp_path: Path) -> None:
    made, info = io.BytesIO(), zipfile.ZipInfo("user/a.pt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(info, "/etc/passwd")
    served.content = made.getvalue()
    with pytest.raises(DownloadError, match="is a link or a device"):
        bring(published("kmeans", served.url), tmp_path)


def test_archives_without_models_damaged_or_too_large_are_refused(
    served: Served, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(checkpoints)
    twice = io.BytesIO()
    with tarfile.open(fileobj=twice, mode="w") as file:
        for _ in range(2):
            info = tarfile.TarInfo("user/a.pt")
            file.addfile(info)
    whole = tarred(models)
    for content, why in (
        (zipped({"README": b""}), "holds no models"),
        (b"neither", "damaged archive"),
        (whole[: len(whole) // 2], "damaged archive"),
        (twice.getvalue(), "twice"),
        (zipped({**models, "user/evil.pt": b"cos\nsystem\n(S'true'\ntR."}), r"user/evil\.pt: refused: .*os\.system"),
    ):
        served.content, served.etag = content, None
        with pytest.raises(DownloadError, match=why):
            bring(published("kmeans", served.url), tmp_path)
        assert names(tmp_path) == {"kmeans.refused"}
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 1000)
    served.content = zipped({"user/zeros.pt": b"\0" * 1001})
    with pytest.raises(DownloadError, match="larger than 1000 bytes"):
        bring(published("kmeans", served.url), tmp_path)


def test_every_published_file_says_whose_it_is_and_has_an_encrypted_address() -> None:
    assert set(PUBLISHED) == {"wavlm", "conformer", "kmeans"}
    for file in PUBLISHED.values():
        assert file.owner
        assert "https://" in file.terms
        assert file.page.startswith("https://")
        transfer.check_address(file.address, local=False)


@pytest.mark.parametrize(
    "url",
    [
        "https://drive.google.com/file/d/1E9NDTnsQp73bHu1Xn8-aTdPDqq1w0K5x/view?usp=sharing",
        "https://drive.google.com/open?id=1E9NDTnsQp73bHu1Xn8-aTdPDqq1w0K5x",
    ],
)
def test_addresses_of_google_drive_are_those_of_its_files(url: str) -> None:
    assert published("conformer", url) == PUBLISHED["conformer"]


def test_without_gdown_google_drive_is_one_line_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(MkcError, match=r"needs gdown: pip install 'mkc-fast\[.*download\]'"):
        bring(PUBLISHED["kmeans"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_shows_terms_and_digests(
    served: Served,
    wavlm: Published,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["download", "wavlm", "--url", served.url, "--out", str(tmp_path / "ckpt")]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(command) == 2
    said = capsys.readouterr()
    assert wavlm.terms in said.err
    assert wavlm.owner in said.err
    assert "error: nothing was downloaded: read the terms, and give --accept-terms" in said.err
    assert (served.asked, (tmp_path / "ckpt").exists()) == ([], False)
    assert main([*command, "--accept-terms"]) == 0
    assert hashlib.sha256(served.content).hexdigest() in capsys.readouterr().out
    assert main(command) == 0  # neither asks nor downloads
    said = capsys.readouterr()
    assert "already there, as recorded" in said.out
    assert wavlm.terms not in said.err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_on_a_terminal_the_command_asks_once(
    answer: str, code: int, served: Served, wavlm: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["download", "wavlm", "--url", served.url, "--out", str(tmp_path / "ckpt")]) == code
    assert bool(served.asked) == (code == 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["wavlm", "conformer", "--url", "https://example.org"],
        ["wavlm", "--url", "https://example.org", "--from", "x"],
    ],
)
def test_wrong_arguments_of_the_command_are_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", *arguments, "--out", str(tmp_path / "ckpt"), "--accept-terms"]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_a_stopped_download_has_the_code_of_a_stopped_run(
    served: Served, wavlm: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.cuts = [BLOCK, *[0] * 8]
    assert main(["download", "wavlm", "--url", served.url, "--out", str(tmp_path), "--accept-terms"]) == 3
    assert "run the same command to continue" in capsys.readouterr().err


def test_nothing_of_it_is_imported_at_start_up() -> None:
    code = (
        "import sys; from mkc_fast.cli import main; main(['--help']); print([name for name in "
        "('gdown', 'requests', 'torch', 'urllib.request', 'mkc_fast.export.downloads') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
