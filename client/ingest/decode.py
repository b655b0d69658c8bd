"""Decoding in a child process that can be lost: hostile bytes meet codecs there, never in the daemon.

In: paths, one at a time, or all paths of one series with its mask. Out: a framed `Photograph`, a `Scan`, the patches of a volume
(`Cut`), or `Unusable` with a reason. Guaranteed: the child has a capped address space, a time limit per request, no core dumps,
no file it may write, no voice on stderr; when it dies or hangs, that request gets a reason, a new child starts, and the next one
goes on. Answers are a length, JSON and raw bytes (no pickles), checked by the parent as if from a stranger; the site's key never
enters the child. Not covered: a codec exploit reading other files of the same user (run the site under its own account).

Child, photographs: 1. open, following no link and waiting on no pipe; 2. size cap; 3. format by content; 4. decode; 5. digest;
6. frame. Volumes: volumes.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from client.ingest.files import opened
from client.ingest.images import framed, read_photograph
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import LOOK_PX, SLICE_DIGEST_BYTES, Caps, Cut, Scan, VolumeFiles
from common.arrays import Pixels

T = TypeVar("T")
R = TypeVar("R")

ANSWER_CAP_BYTES = 1 << 14
START_TIMEOUT_S = 60.0
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True)
class Limits:
    """What one ingest may use. `max_pixel_bytes` bounds rows x columns x frames x samples x bytes of one file, and what a
    compressed file inflates to; `max_volume_bytes` rows x columns x slices x 4 of one series. A child holds one volume.
    """

    max_files: int = 1_000_000
    max_file_bytes: int = 256 << 20
    max_pixel_bytes: int = 256 << 20
    max_labels_bytes: int = 64 << 20
    decode_memory_bytes: int = 2 << 30
    decode_timeout_s: float = 30.0
    max_volume_bytes: int = 512 << 20
    volume_timeout_s: float = 300.0
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
    max_volume_bytes: int = 512 << 20
    volume_timeout_s: float = 300.0
    patches: int = 0  # of one person, in a study of volumes

    @property
    def caps(self) -> Caps:
        """What of this concerns volumes."""
        sizes = (self.max_file_bytes, self.max_pixel_bytes, self.max_volume_bytes)
        return Caps(self.size_px, self.modalities, self.window, *sizes)


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
    with opened(path, settings.max_file_bytes) as file:  # 1, 2
        return _photograph(file, settings)


def _photograph(file: BinaryIO, settings: Settings) -> Photograph:
    """Steps 3 to 6."""
    head = file.read(132)
    file.seek(0)
    is_dicom = head[128:] == b"DICM"
    patient_id = ""
    issuer = ""
    laterality = 0
    if is_dicom:
        from client.ingest.dicom import read_dicom

        image = read_dicom(file, settings.modalities, settings.window, settings.max_pixel_bytes)
        pixels = image.pixels
        patient_id = image.patient_id
        issuer = image.issuer
        laterality = image.laterality
    elif head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        try:
            pixels = read_photograph(file, settings.max_pixel_bytes)
        except (Unusable, MemoryError):
            raise
        except Exception as error:
            raise Unusable(Reason.UNDECODABLE) from error
    else:
        raise Unusable(Reason.UNKNOWN_FORMAT)
    digest = hashlib.sha256(
        repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    ).digest()
    square = framed(
        pixels, settings.size_px, settings.channels, field_of_view="OP" in settings.modalities
    )
    return Photograph(square, digest, is_dicom, patient_id, issuer, laterality)


def serve() -> None:
    """The child: settings on the first line of stdin, then one request a line; its answers on the original stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a codec that prints must not garble an answer
    raw = json.loads(sys.stdin.readline())
    settings = Settings(
        **{
            **raw,
            "modalities": tuple(raw["modalities"]),
            "window": raw["window"] and tuple(raw["window"]),
        }
    )
    _confine(settings.memory_bytes)
    import client.ingest.dicom  # noqa: F401  loaded once, before the first file

    _answer(answers, {"ready": True})
    for line in iter(sys.stdin.readline, ""):
        try:
            _serve_one(json.loads(line), settings, answers)
        except Unusable as refusal:
            _answer(answers, {"reason": refusal.reason.value, "at": getattr(refusal, "at", None)})
        except MemoryError:
            _answer(answers, {"reason": Reason.OUT_OF_MEMORY.value})
            return
        except Exception:
            _answer(answers, {"reason": Reason.UNDECODABLE.value})
        signal.alarm(0)


def _serve_one(request: dict[str, Any], settings: Settings, answers: BinaryIO) -> None:
    """Answer one request: a path to decode, a path to look at, or a volume to cut."""
    volume = "slices" in request
    signal.alarm(
        int(settings.volume_timeout_s if volume else settings.timeout_s) + 5
    )  # an orphan does not decode for ever
    if volume:
        return _serve_volume(request, settings, answers)
    if "scan" in request:
        from client.ingest.volumes import scan

        return _answer(answers, asdict(scan(request["scan"], settings.caps)))
    photograph = read_file(request["photograph"], settings)
    return _answer(answers, _facts_of(photograph), photograph.pixels.tobytes())


def _serve_volume(request: dict[str, Any], settings: Settings, answers: BinaryIO) -> None:
    """First what the volume is; then, if it has a mask, its patches for the seed that the parent answers with."""
    from client.ingest.volumes import patches, read_volume

    mask = request["mask"] and tuple(request["mask"])
    volume = read_volume(request["slices"], mask, settings.caps)
    facts = {
        "digest": volume.digest.hex(),
        "slices": len(volume.slices),
        "refusal": volume.refusal and volume.refusal.value,
    }
    _answer(answers, facts, volume.look.tobytes() + b"".join(volume.slices))
    if volume.refusal is None:
        seed = bytes.fromhex(json.loads(sys.stdin.readline())["seed"])
        _answer(answers, {}, patches(volume, seed, settings.patches, settings.size_px).tobytes())


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


def _answer(pipe: BinaryIO, facts: dict[str, object], data: bytes = b"") -> None:
    """Length, JSON, raw bytes."""
    text = json.dumps(facts).encode()
    pipe.write(len(text).to_bytes(4, "big") + text)
    pipe.write(data)
    pipe.flush()


class Refused(Unusable):
    """The child refused a volume because of its slice `at`, or as a whole."""

    def __init__(self, reason: Reason, at: int | None) -> None:
        super().__init__(reason)
        self.at = at


@dataclass(frozen=True)
class Conversation:
    """One request and its answers, until the deadline (of time.monotonic)."""

    child: subprocess.Popen[bytes]
    deadline: float

    def say(self, request: object) -> None:
        """Send one line of JSON."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(request).encode() + b"\n")

    def facts(self) -> dict[str, object]:
        """Return the JSON of an answer. Raises Refused with the child's reason, Unusable when the answer is none."""
        size = int.from_bytes(self.exactly(4), "big")
        if size > ANSWER_CAP_BYTES:
            raise Unusable(Reason.DECODER_DIED)
        facts = json.loads(self.exactly(size))
        if not isinstance(facts, dict):
            raise Unusable(Reason.DECODER_DIED)
        if "reason" in facts:
            at = facts.get("at")
            raise Refused(Reason(str(facts["reason"])), at if isinstance(at, int) else None)
        return facts

    def exactly(self, count: int) -> bytes:
        """Return `count` bytes of the answer. Raises Unusable (decoder-timed-out, decoder-died)."""
        assert self.child.stdout is not None
        waiter = select.poll()
        waiter.register(self.child.stdout, select.POLLIN)
        data = bytearray()
        while len(data) < count:
            if not waiter.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
                raise Unusable(Reason.TIMED_OUT)
            piece = os.read(self.child.stdout.fileno(), min(count - len(data), 1 << 16))
            if not piece:
                raise Unusable(Reason.DECODER_DIED)
            data += piece
        return bytes(data)


class Decoder:
    """One child process, started when needed and started again after it dies. Used by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> Photograph:
        """Return the photograph in `path`. Raises Unusable, also when the child hangs or dies."""
        return self._ask({"photograph": str(path)}, self._photograph, self._settings.timeout_s)

    def scan(self, path: Path) -> Scan:
        """Return what the file at `path` says of itself. Raises Unusable."""
        return self._ask({"scan": str(path)}, self._scan, self._settings.timeout_s)

    def cut(self, files: VolumeFiles, seed_of: Callable[[bytes], bytes]) -> Cut:
        """Return the patches of one volume, chosen by `seed_of(its digest)`. Raises Unusable; Refused names the slice."""
        mask = files.mask and (files.mask[0], str(files.mask[1]))
        request = {"slices": [str(path) for path in files.slices], "mask": mask}
        return self._ask(
            request, lambda talk: self._cut(talk, files, seed_of), self._settings.volume_timeout_s
        )

    def _ask(self, request: object, read: Callable[[Conversation], R], timeout_s: float) -> R:
        """What `read` makes of the answer; a child that broke off is ended."""
        try:
            talk = Conversation(self._running(), time.monotonic() + timeout_s)
            talk.say(request)
            return read(talk)
        except Unusable as refusal:
            if refusal.reason in (Reason.TIMED_OUT, Reason.DECODER_DIED, Reason.OUT_OF_MEMORY):
                self.close()
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise Unusable(Reason.DECODER_DIED) from error

    def close(self) -> None:
        """End the child, if any."""
        child = self._child
        self._child = None
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
                name: os.environ[name]
                for name in ("PATH", "PYTHONPATH", "HOME")
                if name in os.environ
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
            talk = Conversation(self._child, time.monotonic() + START_TIMEOUT_S)
            talk.say(asdict(self._settings))
            talk.facts()
        return self._child

    def _photograph(self, talk: Conversation) -> Photograph:
        """The child's answer, checked: every field of the type and size that it must have."""
        facts = talk.facts()
        side = self._settings.size_px
        shape = (side, side, self._settings.channels)
        pixels = np.frombuffer(
            talk.exactly(side * side * self._settings.channels), np.uint8
        ).reshape(shape)
        patient_id = facts["patient_id"]
        issuer = facts["issuer"]
        laterality = facts["laterality"]
        if not (
            isinstance(patient_id, str) and isinstance(issuer, str) and laterality in (0, 1, 2)
        ):
            raise ValueError("decoder answered a wrong type")
        digest = bytes.fromhex(str(facts["digest"]))
        return Photograph(
            pixels, digest, bool(facts["is_dicom"]), patient_id, issuer, int(laterality)
        )

    def _scan(self, talk: Conversation) -> Scan:
        """The same for a scan."""
        facts = talk.facts()
        if facts["kind"] not in ("slice", "segmentation", "nifti") or not all(
            isinstance(v, str) for v in facts.values()
        ):
            raise ValueError("decoder answered a wrong type")
        return Scan(**facts)  # type: ignore[arg-type]

    def _cut(
        self, talk: Conversation, files: VolumeFiles, seed_of: Callable[[bytes], bytes]
    ) -> Cut:
        """The same for a volume, with the seed in between."""
        facts = talk.facts()
        digest = bytes.fromhex(str(facts["digest"]))
        count = facts["slices"]
        refusal = facts["refusal"]
        if not isinstance(count, int) or not 0 <= count <= len(files.slices) or len(digest) != 32:
            raise ValueError("decoder answered a wrong type")
        seen = np.frombuffer(talk.exactly(LOOK_PX * LOOK_PX), np.uint8).reshape(LOOK_PX, LOOK_PX, 1)
        raw = talk.exactly(count * SLICE_DIGEST_BYTES)
        slices = tuple(
            raw[i : i + SLICE_DIGEST_BYTES] for i in range(0, len(raw), SLICE_DIGEST_BYTES)
        )
        if refusal is not None:
            return Cut(digest, slices, seen, Reason(str(refusal)), np.empty((0, 0, 0, 2), np.uint8))
        talk.say({"seed": seed_of(digest).hex()})
        talk.facts()
        half = (self._settings.patches + 1) // 2
        side = self._settings.size_px
        patches = np.frombuffer(talk.exactly(2 * half * side * side * 2), np.uint8).reshape(
            -1, side, side, 2
        )
        if not np.isin(patches[..., 1], (0, 255)).all():
            raise ValueError("decoder answered a mask that is none")
        return Cut(digest, slices, seen, None, patches)


class Decoders:
    """Several child processes at work at once."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._workers = workers
        self._all = [Decoder(settings) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(workers)

    def each(
        self, work: Callable[[Decoder, T], R], requests: Iterable[T], ahead: int = 4
    ) -> Iterator[R | Unusable]:
        """Yield what `work` returns for each request, or its refusal, in order; `ahead` answers a worker may wait."""
        waiting: deque[Future[R | Unusable]] = deque()
        for request in requests:
            waiting.append(self._threads.submit(self._one, work, request))
            if len(waiting) > ahead * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _one(self, work: Callable[[Decoder, T], R], request: T) -> R | Unusable:
        decoder = self._idle.get()
        try:
            return work(decoder, request)
        except Unusable as refusal:
            return refusal
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Let running work end and end all children."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.close()


@contextmanager
def decoders(settings: Settings, workers: int) -> Iterator[Decoders]:
    """Yield `workers` child processes, which end with the block."""
    pool = Decoders(settings, workers)
    try:
        yield pool
    finally:
        pool.close()


def decode_all(
    paths: Iterable[Path], settings: Settings, workers: int
) -> Iterator[Photograph | Reason]:
    """Yield each path's photograph or reason, in order, decoding in `workers` child processes at once."""
    with decoders(settings, workers) as pool:
        for outcome in pool.each(Decoder.decode, paths):
            yield outcome.reason if isinstance(outcome, Unusable) else outcome


if __name__ == "__main__":
    serve()
