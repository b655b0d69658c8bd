"""What is fetched from a DICOMweb server, and what of a server's answers is refused."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import os
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from client.dicomweb import connection, query
from client.dicomweb.connection import parse_answer
from client.dicomweb.credential import read_credential
from client.dicomweb.multipart import LeftOut, read_part
from client.ingest.archive import open_source
from client.ingest.request import Limits
from client.ingest.sealed import PIECE_BYTES, SealedFolder
from client.state.dicomweb import Dicomweb
from common.errors import ConfigurationError, EnvironmentFault, KohortError
from common.wire import keys
from tests.client.dicomweb.conftest import KEY, Fetch
from tests.client.dicomweb.dicomweb_server import (
    BOUNDARY,
    MULTIPART,
    Answer,
    Server,
    part,
    serving,
)

ONE = "1.1/1.1.1/1.1.1.1"
ANY = Limits(workers=1)


def contents(tmp_path: Path) -> dict[str, bytes]:
    """Return the fetched images as an intake sees them."""
    state = tmp_path / "state"
    with open_source(state / "fetched", state / "cohort", ANY, skip=None, key=KEY) as opened:
        return {name: path.read_bytes() for name, path in opened.paths.items()}


def test_images_are_fetched_once_and_lie_sealed(
    fetch: Fetch, server: Server, tmp_path: Path
) -> None:
    first = fetch()
    assert (first.found, first.there, first.came, first.left_out) == (3, 0, 3, {})
    folder = tmp_path / "state" / "fetched"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "kohort-sealed"
        assert b"MARKERSURNAME" not in path.read_bytes()
        assert b"1.1.1.1" not in path.read_bytes() and "1.1.1" not in path.name
    assert contents(tmp_path)[ONE] == b"MARKERSURNAME one" * 9
    assert len(contents(tmp_path)) == 3
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["fetched"]
    # a second time nothing is fetched that is here
    server.asked.clear()
    server.images[("1.2", "1.2.1", "1.2.1.2")] = b"new"
    again = fetch()
    assert (again.found, again.there, again.came) == (4, 3, 1)
    assert [path for path in server.asked if path.count("/") == 6] == [
        "/studies/1.2/series/1.2.1/instances/1.2.1.2"
    ]


def test_the_query_is_narrowed_and_goes_through_pages(
    fetch: Fetch, server: Server, tmp_path: Path
) -> None:
    server.page = 1
    assert fetch(modalities=["DX"], body_parts=["CHEST"]).found == 1
    assert fetch(modalities=["DX"]).found == 2
    studies = tmp_path / "studies.txt"
    studies.write_text("1.2\n\n")
    assert fetch(modalities=[], studies_file=str(studies)).found == 1
    studies.write_text("1.2\n../patients\n")
    with pytest.raises(ConfigurationError, match="line 2: not a StudyInstanceUID") as caught:
        fetch(studies_file=str(studies))
    assert "patients" not in str(caught.value)


def test_an_intake_that_stops_half_way_is_gone_on_with(fetch: Fetch, server: Server) -> None:
    server.other = lambda path: Answer(403) if path.endswith("1.2.1.1") else None
    with pytest.raises(EnvironmentFault, match="403"):
        fetch()
    server.other = lambda path: None
    assert (fetch().there, fetch().there) == (2, 3)


@pytest.mark.parametrize(
    ("status", "words", "tries"),
    [
        (401, "another credential", 1),
        (403, "forbids", 1),
        (404, "nothing there", 1),
        (503, "at fault or busy", 3),
        (418, "refuses the request", 1),
    ],
)
def test_each_refusal_has_words(
    fetch: Fetch, server: Server, status: int, words: str, tries: int
) -> None:
    server.other = lambda path: Answer(status, "text/html", b"MUELLER^ANNA")
    with pytest.raises(EnvironmentFault, match=words) as caught:
        fetch()
    assert caught.value.code == "E-DICOMWEB"
    assert "MUELLER" not in f"{caught.value}{caught.value.hint}"
    assert len(server.asked) == tries


def test_what_passes_is_tried_again(fetch: Fetch, server: Server) -> None:
    answers = iter([Answer(503), Answer(503)])
    server.other = lambda path: next(answers, None)
    assert fetch().came == 3


def test_no_redirect_is_followed_and_the_credential_goes_nowhere_else(
    fetch: Fetch, server: Server
) -> None:
    with serving(Server()) as elsewhere:
        headers = {"Location": f"{elsewhere.url}/studies"}
        server.other = lambda path: Answer(302, headers=headers)
        with pytest.raises(EnvironmentFault, match="sends us elsewhere"):
            fetch("Bearer secret")
        assert elsewhere.asked == []
    assert server.credentials == ["Bearer secret"]


def endless(block: bytes) -> Iterator[bytes]:
    return itertools.repeat(block)


def test_an_image_without_end_is_cut_and_the_others_come(
    fetch: Fetch, server: Server, tmp_path: Path
) -> None:
    head = f"--{BOUNDARY}\r\n\r\n".encode()

    def other(path: str) -> Answer | None:
        if path.endswith("1.1.1.1"):
            return Answer(200, MULTIPART, itertools.chain([head], endless(bytes(1 << 16))))
        return None

    server.other = other
    found = fetch()
    assert (found.came, found.left_out) == (2, {"larger than limits.max_file_mib": 1})
    assert len(contents(tmp_path)) == 2
    assert list((tmp_path / "state" / "fetched").glob("*.part")) == []


def test_all_bytes_together_are_bounded(fetch: Fetch, server: Server) -> None:
    server.images = {("1.1", "1.1.1", f"1.1.1.{n}"): os.urandom(1000) for n in range(3)}
    with pytest.raises(EnvironmentFault, match="max_gib"):
        fetch(max_gib=2500 / (1 << 30))
    # what came stays
    assert (fetch().there, len(server.images)) == (2, 3)


def test_a_query_without_end_is_cut(
    fetch: Fetch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "JSON_CAP_BYTES", 1 << 17)
    server.other = lambda path: Answer(body=itertools.chain([b"["], endless(b" " * 4096)))
    with pytest.raises(EnvironmentFault, match="larger than 131,072 bytes"):
        fetch()


def test_a_server_that_invents_images_is_stopped(fetch: Fetch, server: Server) -> None:
    counter = itertools.count(1)

    def other(path: str) -> Answer:
        return Answer(body=b'[{"0020000D":{"Value":["1.%d"]}}]' % next(counter))

    server.other = other
    with pytest.raises(EnvironmentFault, match="more than 5 fit"):
        fetch(max_instances=5)
    assert len(server.asked) == 6


def test_a_server_that_forgets_the_offset_is_named(
    fetch: Fetch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "PAGE", 1)
    server.ignores_offset = True
    with pytest.raises(EnvironmentFault, match="first 1 answers alone"):
        fetch()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(kind="text/html", body=b"<html>sign in"),
        Answer(kind="text/html", body=b"[]"),
        Answer(body=b"{}"),
        Answer(body=b"[" * 200_000),
        Answer(body=b"\xff"),
        Answer(body=b"[{}]"),
        Answer(body=b'[{"0020000D":{"Value":["../../etc"]}}]'),
        Answer(body=b'[{"0020000D":{"Value":["1.2\\n"]}}]'),
        Answer(body=b"[[]]"),
        Answer(headers={"Content-Encoding": "gzip"}),
    ],
    ids=range(10),
)
def test_an_answer_that_is_none_is_refused(fetch: Fetch, server: Server, answer: Answer) -> None:
    server.other = lambda path: answer
    with pytest.raises(EnvironmentFault) as caught:
        fetch()
    assert caught.value.code == "E-DICOMWEB"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(404), "does not have it"),
        (Answer(500), "fails on it"),
        (Answer(kind="text/html", body=b"<html>"), "not DICOM"),
        (Answer(kind=MULTIPART, body=part(b"x", "image/png")), "not DICOM"),
        (Answer(kind="multipart/related", body=part(b"x")), "no boundary"),
        (Answer(kind=MULTIPART.replace("edge", "other"), body=part(b"x")), "no part"),
        (Answer(kind=MULTIPART, body=bytes(40_000)), "no part"),
        (Answer(kind=MULTIPART, body=itertools.repeat(bytes(1 << 16), 32)), "no part at its start"),
        (Answer(kind=MULTIPART, body=part(b"x")[:-6]), "ends before"),
        (Answer(kind=MULTIPART, body=part(b"x")[:-4] + b"\r\n" + part(b"y")), "several parts"),
    ],
    ids=range(10),
)
def test_an_image_that_is_none_is_counted(
    fetch: Fetch, server: Server, answer: Answer, words: str
) -> None:
    server.other = lambda path: answer if path.endswith("1.1.1.1") else None
    found = fetch()
    assert found.came == 2
    (why,) = found.left_out
    assert words in why
    assert f"left out: 1: {why}" in list(found.lines())


def test_a_server_that_says_nothing_is_left(fetch: Fetch, server: Server) -> None:
    done = threading.Event()

    def slow() -> Iterator[bytes]:
        done.wait(10)
        yield b"[]"

    server.other = lambda path: Answer(body=slow())
    with pytest.raises(EnvironmentFault, match="takes too long"):
        fetch(timeout_s=0.05)
    done.set()


def own_certificate(folder: Path) -> Path:
    """A certificate of this machine's address, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pacs")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "pacs.pem"
    pem = keys.to_pem(key, None)
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_certificate_is_checked(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    path = own_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    secured = Server(images=server.images, modality=server.modality)
    with serving(secured, tls):
        with pytest.raises(EnvironmentFault, match="certificate of the server is not trusted"):
            fetch(url=secured.url)
        assert secured.asked == []
        assert fetch(url=secured.url, ca_file=str(path)).came == 3
    (tmp_path / "empty.pem").touch()
    for name in ("empty.pem", "none.pem"):
        with pytest.raises(ConfigurationError, match="not a file of certificates"):
            fetch(ca_file=str(tmp_path / name))


def test_a_proxy_is_the_one_of_the_settings(
    fetch: Fetch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert fetch().came == 3
    proxy = server.url.removesuffix("/dicom-web")
    assert fetch(url="http://127.0.0.1:9/dicom-web", proxy=proxy).there == 3


def test_a_server_that_is_not_there_is_named(fetch: Fetch) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        fetch(url="http://127.0.0.1:9/dicom-web")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_part_is_the_same_however_it_is_cut(size: int) -> None:
    data = bytes(range(256)) + f"\r\n--{BOUNDARY[:-1]}".encode() * 3 + b"\r\n\r\n"
    body = b"preamble\r\n" + part(data)
    blocks = (body[i : i + size] for i in range(0, len(body), size))
    assert b"".join(read_part(MULTIPART, blocks)) == data
    assert b"".join(read_part("application/dicom", [data])) == data
    for cut in range(1, 40):
        with pytest.raises(LeftOut):
            list(read_part(MULTIPART, [body[: -cut - 2]]))


def test_what_is_sealed_comes_back_and_damage_is_seen(tmp_path: Path) -> None:
    sealed = SealedFolder.make(tmp_path / "fetched", KEY)
    sizes = (0, 1, PIECE_BYTES, PIECE_BYTES + 1)
    for size in sizes:
        sealed.add(f"1.{size}", [bytes(size // 2), bytes(size - size // 2)])
    files = sealed.files(10)
    assert [files[f"1.{size}"].size for size in sizes] == list(sizes)
    for size in sizes:
        sealed.unseal(files[f"1.{size}"], tmp_path / f"{size}")
        assert (tmp_path / f"{size}").read_bytes() == bytes(size)
    # more than was asked for, another key
    with pytest.raises(ConfigurationError, match="more than 3 files"):
        sealed.files(3)
    with pytest.raises(ConfigurationError, match="another site"):
        SealedFolder(tmp_path / "fetched", bytes(32))
    with pytest.raises(ConfigurationError, match="no key"):
        SealedFolder(tmp_path / "fetched", None)
    # altered, cut at a frame's end, and exchanged
    one = files[f"1.{PIECE_BYTES + 1}"]
    whole = one.path.read_bytes()
    last = 1 + 16 + 4
    for number, other in enumerate((whole[:-1], whole[:-last], whole[:-1] + b"x", whole + b"x")):
        one.path.write_bytes(other)
        with pytest.raises(ConfigurationError) as caught:
            sealed.unseal(one, tmp_path / f"damaged-{number}")
        assert caught.value.code == "E-DATA-FETCHED"
    one.path.write_bytes(files["1.1"].path.read_bytes())
    with pytest.raises(ConfigurationError, match="damaged"):
        sealed.files(10)


def test_a_folder_in_use_or_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    with pytest.raises(ConfigurationError, match="holds other things"):
        SealedFolder.make(tmp_path / "data", KEY)
    sealed = SealedFolder.make(tmp_path / "fetched", KEY)
    (tmp_path / "fetched" / "left.part").touch()
    with sealed.locked():
        assert not (tmp_path / "fetched" / "left.part").exists()
        with pytest.raises(ConfigurationError, match="another fetch"), sealed.locked():
            pass


def offered(text: bytes) -> str | None:
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    try:
        return read_credential(reading)
    finally:
        os.close(reading)


def test_a_credential_comes_by_a_descriptor_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert read_credential(None) is None
    assert offered(b"reader:se:cret\n") == "Basic cmVhZGVyOnNlOmNyZXQ="
    assert offered(b"Bearer abc.def\n") == "Bearer abc.def"
    for wrong in (b"", b"secret", b"a:b\nX-Header: 1\n", b"a:\xff", b"a:" + bytes(20_000)):
        with pytest.raises(ConfigurationError) as caught:
            offered(wrong)
        assert "secret" not in str(caught.value)
    (tmp_path / "kohort-dicomweb").write_text("a:b\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_credential(None) == "Basic YTpi"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "http://pacs/x", "modalities": ["DX"]}, "in clear"),
        ({"url": "https://a:secret@pacs/x", "modalities": ["DX"]}, "password"),
        ({"url": "https://pacs/x"}, "every study"),
        ({"url": "pacs", "modalities": ["DX"]}, "expected https"),
        ({"url": "https://pacs/x?y=1", "modalities": ["DX"]}, "without"),
        ({"url": "https://[x/", "modalities": ["DX"]}, "expected https"),
    ],
)
def test_settings_that_cannot_be_asked_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Dicomweb.model_validate(keys)


def test_deep_and_huge_answers_end_with_a_code() -> None:
    for body in (b"[" * 100_000, b"9" * 10_000, b'{"a":1}', b"\x00", b""):
        with pytest.raises(KohortError):
            parse_answer(body)
