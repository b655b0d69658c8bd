"""Decoding in a child process that can be lost: hostile bytes meet codecs there, never in the daemon.

In: paths, one at a time. Out: a framed `Photograph`, or `Unusable` with a reason. Guaranteed: the child has a capped
address space, a time limit per file, no core dumps, no file it may write, no voice on stderr; when it dies or hangs,
that file gets a reason, a new child starts, and the next file goes on. Answers are a length, JSON and raw pixels (no
pickles), checked by the parent as if from a stranger. Not covered: a codec exploit reading other files of the same
user (run the site under its own account).

Child: 1. open, following no link and waiting on no pipe; 2. size cap; 3. format by content; 4. decode; 5. digest;
6. frame.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from client.ingest.images import Pixels, framed, read_photograph
from client.ingest.quarantine import Reason, Unusable

ANSWER_CAP_BYTES = 1 << 14
START_TIMEOUT_S = 60.0
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Limits:
    """What one ingest may use. `max_pixel_bytes` bounds rows x columns x frames x samples x bytes of one file."""

    max_files: int = 1_000_000
    max_file_bytes: int = 256 << 20
    max_pixel_bytes: int = 256 << 20
    max_labels_bytes: int = 64 << 20
    decode_memory_bytes: int = 2 << 30
    decode_timeout_s: float = 30.0
    workers: int = 2


@dataclass(frozen=True)
class Settings:
    """What the child needs of the plan and the limits."""

    size_px: int
    channels: int
    modalities: tuple[str, ...]
    window: tuple[float, float] | None
    max_file_bytes: int
    max_pixel_bytes: int
    memory_bytes: int
    timeout_s: float


@dataclass(frozen=True)
class Photograph:
    """`pixels` uint8 [S, S, C]; SHA-256 of the decoded pixels before framing; DICOM only: raw id, issuer, side (0, 1
    left, 2 right)."""

    pixels: Pixels
    digest: bytes
    is_dicom: bool
    patient_id: str
    issuer: str
    laterality: int


def read_file(path: str, settings: Settings) -> Photograph:
    """Return one file's photograph. Raises Unusable. Runs in the child."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # 1
    except OSError as error:
        raise Unusable(Reason.NOT_A_FILE if os.path.islink(path) else Reason.UNREADABLE) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(Reason.NOT_A_FILE)
        if status.st_size > settings.max_file_bytes:  # 2
            raise Unusable(Reason.FILE_TOO_LARGE)
        return _photograph(file, settings)


def _photograph(file: BinaryIO, settings: Settings) -> Photograph:
    """Steps 3 to 6."""
    head = file.read(132)
    file.seek(0)
    is_dicom = head[128:] == b"DICM"
    patient_id, issuer, laterality = "", "", 0
    if is_dicom:
        from client.ingest.dicom import read_dicom

        image = read_dicom(file, settings.modalities, settings.window, settings.max_pixel_bytes)
        pixels, patient_id, issuer, laterality = image.pixels, image.patient_id, image.issuer, image.laterality
    elif head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        try:
            pixels = read_photograph(file, settings.max_pixel_bytes)
        except (Unusable, MemoryError):
            raise
        except Exception as error:
            raise Unusable(Reason.UNDECODABLE) from error
    else:
        raise Unusable(Reason.UNKNOWN_FORMAT)
    digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()
    square = framed(pixels, settings.size_px, settings.channels, field_of_view="OP" in settings.modalities)
    return Photograph(square, digest, is_dicom, patient_id, issuer, laterality)


def serve() -> None:
    """The child: settings on the first line of stdin, then one path a line; one answer each on the original stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not garble an answer
    raw = json.loads(sys.stdin.readline())
    settings = Settings(
        **{**raw, "modalities": tuple(raw["modalities"]), "window": raw["window"] and tuple(raw["window"])}
    )
    _confine(settings.memory_bytes)
    import client.ingest.dicom  # noqa: F401  loaded once, before the first file

    _answer(answers, {"ready": True}, b"")
    for line in sys.stdin:
        signal.alarm(int(settings.timeout_s) + 5)  # an orphan does not decode for ever
        try:
            photograph = read_file(json.loads(line), settings)
            _answer(answers, _facts_of(photograph), photograph.pixels.tobytes())
        except Unusable as refusal:
            _answer(answers, {"reason": refusal.reason.value}, b"")
        except MemoryError:
            _answer(answers, {"reason": Reason.OUT_OF_MEMORY.value}, b"")
            return
        except Exception:
            _answer(answers, {"reason": Reason.UNDECODABLE.value}, b"")
        signal.alarm(0)


def _facts_of(photograph: Photograph) -> dict[str, object]:
    """All of a photograph but its pixels, as JSON can say it."""
    return {
        "digest": photograph.digest.hex(),
        "is_dicom": photograph.is_dicom,
        "patient_id": photograph.patient_id,
        "issuer": photograph.issuer,
        "laterality": photograph.laterality,
    }


def _confine(memory_bytes: int) -> None:
    """Cap memory, writing, core dumps and new processes of this process."""
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))


def _answer(pipe: BinaryIO, facts: dict[str, object], pixels: bytes) -> None:
    """Length, JSON, pixels."""
    text = json.dumps(facts).encode()
    pipe.write(len(text).to_bytes(4, "big") + text + pixels)
    pipe.flush()


class Decoder:
    """One child process, started when needed and started again after it dies. Used by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> Photograph:
        """Return the photograph in `path`. Raises Unusable, also when the child hangs or dies."""
        try:
            child = self._running()
            self._send(child, json.dumps(str(path)))
            return self._photograph(child, time.monotonic() + self._settings.timeout_s)
        except Unusable as refusal:
            if refusal.reason in (Reason.TIMED_OUT, Reason.DECODER_DIED, Reason.OUT_OF_MEMORY):
                self.close()
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise Unusable(Reason.DECODER_DIED) from error

    def close(self) -> None:
        """End the child, if any."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, "-P", "-m", "client.ingest.decode"]
            environment = {
                name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ
            } | QUIET
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                start_new_session=True,
            )
            self._send(self._child, json.dumps(asdict(self._settings)))
            self._facts(self._child, time.monotonic() + START_TIMEOUT_S)
        return self._child

    @staticmethod
    def _send(child: subprocess.Popen[bytes], line: str) -> None:
        assert child.stdin is not None
        child.stdin.write(line.encode() + b"\n")

    def _photograph(self, child: subprocess.Popen[bytes], deadline: float) -> Photograph:
        """The child's answer, checked: every field of the type and size that it must have."""
        facts = self._facts(child, deadline)
        if "reason" in facts:
            raise Unusable(Reason(str(facts["reason"])))
        side = self._settings.size_px
        shape = (side, side, self._settings.channels)
        pixels = np.frombuffer(_exactly(child, side * side * self._settings.channels, deadline), np.uint8).reshape(
            shape
        )
        patient_id, issuer, laterality = facts["patient_id"], facts["issuer"], facts["laterality"]
        if not (isinstance(patient_id, str) and isinstance(issuer, str) and laterality in (0, 1, 2)):
            raise ValueError("decoder answered a wrong type")
        digest = bytes.fromhex(str(facts["digest"]))
        return Photograph(pixels, digest, bool(facts["is_dicom"]), patient_id, issuer, int(laterality))

    def _facts(self, child: subprocess.Popen[bytes], deadline: float) -> dict[str, object]:
        size = int.from_bytes(_exactly(child, 4, deadline), "big")
        if size > ANSWER_CAP_BYTES:
            raise Unusable(Reason.DECODER_DIED)
        facts = json.loads(_exactly(child, size, deadline))
        if not isinstance(facts, dict):
            raise Unusable(Reason.DECODER_DIED)
        return facts


def _exactly(child: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
    """`count` bytes of the child's answer before the deadline (of time.monotonic). Raises Unusable."""
    assert child.stdout is not None
    waiter = select.poll()
    waiter.register(child.stdout, select.POLLIN)
    data = bytearray()
    while len(data) < count:
        if not waiter.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unusable(Reason.TIMED_OUT)
        piece = os.read(child.stdout.fileno(), min(count - len(data), 1 << 16))
        if not piece:
            raise Unusable(Reason.DECODER_DIED)
        data += piece
    return bytes(data)


def decode_all(paths: Iterable[Path], settings: Settings, workers: int) -> Iterator[Photograph | Reason]:
    """Yield each path's photograph or reason, in order, decoding in `workers` child processes at once."""
    idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    decoders = [Decoder(settings) for _ in range(workers)]
    for decoder in decoders:
        idle.put(decoder)

    def one(path: Path) -> Photograph | Reason:
        decoder = idle.get()
        try:
            return decoder.decode(path)
        except Unusable as refusal:
            return refusal.reason
        finally:
            idle.put(decoder)

    threads = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[Photograph | Reason]] = deque()
        for path in paths:
            waiting.append(threads.submit(one, path))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        for decoder in decoders:
            decoder.close()


if __name__ == "__main__":
    serve()
