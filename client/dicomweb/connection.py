"""The connection to a DICOMweb server: GET alone, with bounded answers.

In: the section `dicomweb` of site.yaml, a credential.
Out: answers to queries as JSON; images in blocks.
Guarantees:
  1. nothing but GET, to this one address; no redirect is followed, no proxy of the environment
  2. an answer ends at its cap in bytes and in time, its head too; none is compressed
  3. what may pass is tried three times; everything else ends with E-DICOMWEB and words for it
  4. no message repeats what the server wrote, nor the credential
Not covered: what the answers say (query.py, multipart.py).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from client.dicomweb.multipart import LeftOut, read_part
from client.fleet.deadline import BoundedBackend, Deadline
from client.state.dicomweb import Dicomweb
from common.errors import ConfigurationError, EnvironmentFault

JSON_CAP_BYTES = 16 << 20
JSON = ("application/dicom+json", "application/json")
ACCEPT_IMAGE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ANSWER_TIMEOUTS = 20  # an answer may take this many timeouts in all
PAUSES_S = (1.0, 4.0)  # before the second and the third try
PASSING = (408, 429, 500, 502, 503, 504)
GONE = (404, 406, 410)

T = TypeVar("T")


class Passing(Exception):
    """What another try may not meet."""

    def __init__(self, words: str, hint: str) -> None:
        super().__init__(words)
        self.hint = hint


class Connection:
    """One server. Raises EnvironmentFault with E-DICOMWEB."""

    def __init__(self, settings: Dicomweb, credential: str | None) -> None:
        assert settings.url is not None
        headers = {"accept-encoding": "identity"}
        if credential is not None:
            headers["authorization"] = credential
        self._url = settings.url.rstrip("/")
        self._deadline = Deadline(ANSWER_TIMEOUTS * settings.timeout_s)
        self._client = httpx.Client(
            verify=_tls(settings),
            proxy=settings.proxy,
            timeout=settings.timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers=headers,
        )
        transports: list[Any] = [self._client._transport, *self._client._mounts.values()]
        for transport in filter(None, transports):
            transport._pool._network_backend = BoundedBackend(self._deadline)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def query(self, path: str, keys: Mapping[str, str]) -> list[Any]:
        """Return the answer to a query: a list of anything."""
        return self._tried(lambda: self._query(path, keys))

    def fetch(self, path: str, take: Callable[[Iterator[bytes]], None], most: int) -> None:
        """Have `take` read one image; raises LeftOut where there is none of at most `most` bytes.

        It is called again, with the image from its start, where a try failed.
        """
        self._tried(lambda: self._fetch(path, take, most))

    def _query(self, path: str, keys: Mapping[str, str]) -> list[Any]:
        with self._get(path, keys, JSON[0]) as response:
            _check(response)
            body = bytearray()
            for block in response.iter_raw():
                body += block
                if len(body) > JSON_CAP_BYTES:
                    raise _fault(
                        f"an answer to a query is larger than {JSON_CAP_BYTES:,} bytes",
                        "narrow the query in site.yaml",
                    )
        if response.status_code == httpx.codes.NO_CONTENT or not body:
            return []
        if _kind(response) not in JSON:
            raise _no_dicomweb()
        return parse_answer(bytes(body))

    def _fetch(self, path: str, take: Callable[[Iterator[bytes]], None], most: int) -> None:
        with self._get(path, {}, ACCEPT_IMAGE) as response:
            if response.status_code in GONE:
                raise LeftOut("the server does not have it, or not as it is")
            if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                raise LeftOut("the server fails on it")
            _check(response)
            blocks = _bounded(response.iter_raw(), most)
            take(read_part(response.headers.get("content-type", ""), blocks))

    @contextmanager
    def _get(self, path: str, keys: Mapping[str, str], accept: str) -> Iterator[httpx.Response]:
        """Ask, and name what goes wrong on the way."""
        self._deadline.restart()
        try:
            url = f"{self._url}/{path}"
            headers = {"accept": accept}
            with self._client.stream("GET", url, params=keys, headers=headers) as response:
                yield response
        except httpx.TimeoutException as error:
            hint = "ask again later, or raise dicomweb.timeout_s"
            raise Passing("the server takes too long", hint) from error
        except httpx.ProxyError as error:
            hint = "correct dicomweb.proxy in site.yaml"
            raise _fault("the proxy refuses the connection", hint) from error
        except httpx.ConnectError as error:
            if "CERTIFICATE" in str(error).upper():
                hint = "name the authority of its certificate in dicomweb.ca_file"
                raise _fault("the certificate of the server is not trusted", hint) from error
            hint = "look at dicomweb.url and the network"
            raise Passing("the server cannot be reached", hint) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            hint = "ask whoever runs the server"
            raise Passing("the server breaks off, or does not speak HTTP", hint) from error

    def _tried(self, call: Callable[[], T]) -> T:
        """Call, and again where what went wrong may pass (3)."""
        for pause_s in PAUSES_S:
            try:
                return call()
            except Passing:
                time.sleep(pause_s)
        try:
            return call()
        except Passing as error:
            raise _fault(str(error), error.hint) from error


def parse_answer(body: bytes) -> list[Any]:
    """Return the list in an answer to a query; raises EnvironmentFault for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _no_dicomweb() from error
    if not isinstance(found, list):
        raise _no_dicomweb()
    return found


def _tls(settings: Dicomweb) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the authorities of site.yaml or of this machine."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{settings.ca_file}: not a file of certificates",
            hint="correct dicomweb.ca_file in site.yaml: certificates as PEM",
            code="E-DICOMWEB",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check(response: httpx.Response) -> None:
    """Raise for an answer that is none."""
    status = response.status_code
    if status in PASSING:
        raise Passing(f"the server is at fault or busy ({status})", "ask again later")
    if response.is_redirect or response.has_redirect_location:
        hint = "name the address itself in dicomweb.url: no redirect is followed"
        raise _fault(f"the server sends us elsewhere ({status})", hint)
    words = {
        401: ("the server wants another credential (401)", "`--credential-fd`: see its help"),
        403: ("the server forbids it (403)", "have this account allowed to read these studies"),
        404: ("the server has nothing there (404)", "correct dicomweb.url: studies lie below it"),
        407: ("the proxy wants a credential (407)", "correct dicomweb.proxy"),
        413: ("the server finds the answer too large (413)", "narrow the query in site.yaml"),
    }
    if status in words:
        raise _fault(*words[status])
    if not response.is_success:
        raise _fault(f"the server refuses the request ({status})", "ask whoever runs the server")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _fault("the server compresses its answer, unasked", "ask whoever runs the server")


def _kind(response: httpx.Response) -> str:
    """The type of an answer, without its parameters."""
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _bounded(blocks: Iterator[bytes], most: int) -> Iterator[bytes]:
    """The same blocks; raises LeftOut behind so many bytes."""
    left = most
    for block in blocks:
        left -= len(block)
        if left < 0:
            raise LeftOut("larger than limits.max_file_mib")
        yield block


def _no_dicomweb() -> EnvironmentFault:
    hint = "correct dicomweb.url; a page to sign in on may stand before the server"
    return _fault("what answers there is no DICOMweb server", hint)


def _fault(what: str, hint: str) -> EnvironmentFault:
    return EnvironmentFault(f"DICOMweb: {what}", hint=hint, code="E-DICOMWEB")
