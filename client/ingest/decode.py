"""Decodes in a child process that can be lost: the parent's side.

In: paths, one at a time, or all paths of one series with its mask.
Out: a framed `Photograph`, a `Scan`, the patches of a volume (`Cut`), or `Unusable` with a reason.
Guarantees:
  - hostile bytes meet codecs in the child alone; its limits stand in decode_child.py
  - each request has a time limit; a child that dies or hangs costs one request, and a new child
    takes the next one
  - an answer is a length, JSON and raw bytes (no pickles), checked as if from a stranger
  - the site's key never enters the child
Not covered: a codec exploit that reads other files of the same user (run the site under its own
account).
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import (
    ANSWER_CAP_BYTES,
    ENDS,
    LOOK_PX,
    SLICE_DIGEST_BYTES,
    Cut,
    Glance,
    Photograph,
    Scan,
    Settings,
    VolumeFiles,
)

T = TypeVar("T")
R = TypeVar("R")

START_TIMEOUT_S = 60.0
# refusals after which there is no child, or none that can be used
LOST = (Reason.TIMED_OUT, Reason.DECODER_DIED, Reason.OUT_OF_MEMORY)
QUIET = {
    # memory of one image is kept for the next: to ask for it anew costs a page fault every 4 KiB
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "LC_ALL": "C.UTF-8",
}


class Refused(Unusable):
    """The child's refusal of a volume: because of its slice `at`, or as a whole.

    `ends`: the child ends with it.
    """

    def __init__(self, reason: Reason, at: int | None, *, ends: bool = False) -> None:
        super().__init__(reason)
        self.at = at
        self.ends = ends


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
        """Return the JSON of an answer.

        Raises Refused with the child's reason, Unusable when the answer is not one.
        """
        size = int.from_bytes(self.exactly(4), "big")
        if size > ANSWER_CAP_BYTES:
            raise Unusable(Reason.DECODER_DIED)
        facts = json.loads(self.exactly(size))
        if not isinstance(facts, dict):
            raise Unusable(Reason.DECODER_DIED)
        if "reason" in facts:
            at = facts.get("at")
            if not isinstance(at, int):
                at = None
            raise Refused(Reason(str(facts["reason"])), at, ends=facts.get(ENDS) is True)
        return facts

    def exactly(self, count: int) -> bytes:
        """Return `count` bytes of the answer; raises Unusable (decoder-timed-out, decoder-died)."""
        assert self.child.stdout is not None
        # wait for each piece no longer than until the deadline
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
    """One child process, started when needed and started again after it dies.

    Only one thread at a time may use it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> Photograph:
        """Return the photograph in `path`. Raises Unusable, also when the child hangs or dies."""
        return self._ask({"photograph": str(path)}, self._photograph, self._settings.timeout_s)

    def scan(self, path: Path) -> Scan:
        """Return what the file at `path` says of itself. Raises Unusable."""
        return self._ask({"scan": str(path)}, self._scan, self._settings.timeout_s)

    def fits(self, slices: Sequence[Path], mask: Path) -> bool:
        """Return whether a segmentation lies on the grid of a series. Raises Unusable."""
        request = {"fits": str(mask), "slices": [str(path) for path in slices]}
        return self._ask(
            request, lambda talk: talk.facts()["fits"] is True, self._settings.volume_timeout_s
        )

    def glance(self, path: Path) -> Glance:
        """Return what the file at `path` shows without its pixels. Raises Unusable."""
        return self._ask({"glance": str(path)}, self._glance, self._settings.timeout_s)

    def cut(self, files: VolumeFiles, seed_of: Callable[[bytes], bytes]) -> Cut:
        """Return the patches of one volume, chosen by `seed_of(its digest)`.

        Raises Unusable; Refused names the slice at fault.
        """
        mask = files.mask and (files.mask[0], str(files.mask[1]))
        request = {"slices": [str(path) for path in files.slices], "mask": mask}
        return self._ask(
            request, lambda talk: self._cut(talk, files, seed_of), self._settings.volume_timeout_s
        )

    def _ask(self, request: object, read: Callable[[Conversation], R], timeout_s: float) -> R:
        """Send a request and return what `read` makes of the answer; end a child that failed."""
        try:
            talk = Conversation(self._running(), time.monotonic() + timeout_s)
            talk.say(request)
            return read(talk)
        except Unusable as refusal:
            # the child hangs, is gone, or ends itself; an ordinary refusal leaves it at work
            ends = isinstance(refusal, Refused) and refusal.ends
            if ends or refusal.reason in LOST:
                self.close()
            raise
        except MemoryError:
            raise
        except Exception as error:
            # a broken pipe, or an answer that breaks the protocol, however it does
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
        """Return the child; start it and give it the settings if there is none."""
        if self._child is None:
            # the child gets three variables of the environment, so no secret among the others
            kept = {"PATH", "PYTHONPATH", "HOME"} & os.environ.keys()
            environment = {name: os.environ[name] for name in kept} | QUIET
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "client.ingest.decode_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                start_new_session=True,
            )
            # it takes its settings, and answers when it is ready
            talk = Conversation(self._child, time.monotonic() + START_TIMEOUT_S)
            talk.say(asdict(self._settings))
            talk.facts()
        return self._child

    def _photograph(self, talk: Conversation) -> Photograph:
        """Read a photograph; check the type and size of every field."""
        # the pixels, of the size that was asked for
        facts = talk.facts()
        side = self._settings.size_px
        channels = self._settings.channels
        raw = talk.exactly(side * side * channels)
        pixels = np.frombuffer(raw, np.uint8).reshape(side, side, channels)

        # the facts: types first
        patient_id = facts["patient_id"]
        issuer = facts["issuer"]
        laterality = facts["laterality"]
        study = facts["study"]
        if not isinstance(patient_id, str) or not isinstance(issuer, str):
            raise ValueError("decoder answered a wrong type")
        if not isinstance(study, str) or not isinstance(facts["silent"], list):
            raise ValueError("decoder answered a wrong type")
        if laterality not in (0, 1, 2):
            raise ValueError("decoder answered a side that is none")
        digest = bytes.fromhex(str(facts["digest"]))
        is_dicom = bool(facts["is_dicom"])
        silent = tuple(name for name in self._settings.wanted.named if name in facts["silent"])
        whose = (patient_id, issuer, int(laterality))
        return Photograph(pixels, digest, is_dicom, *whose, silent, study)

    def _scan(self, talk: Conversation) -> Scan:
        """Read a scan; check every field."""
        facts = talk.facts()
        known = facts["kind"] in ("slice", "segmentation", "nifti")
        if not known or not all(isinstance(value, str) for value in facts.values()):
            raise ValueError("decoder answered a wrong type")
        return Scan(**facts)  # type: ignore[arg-type]

    def _glance(self, talk: Conversation) -> Glance:
        """Read a glance; check every field."""
        seen = Glance(**talk.facts())  # type: ignore[arg-type]
        texts = (seen.kind, seen.patient_id, seen.series, seen.issuer, seen.study)
        side = seen.laterality
        if not all(isinstance(text, str) for text in texts) or type(side) is not int:
            raise ValueError("decoder answered a wrong type")
        if side not in (0, 1, 2):
            raise ValueError("decoder answered a wrong type")
        return seen

    def _cut(
        self, talk: Conversation, files: VolumeFiles, seed_of: Callable[[bytes], bytes]
    ) -> Cut:
        """Read a volume, with the seed sent in between; check every field."""
        # the facts: types and sizes first
        facts = talk.facts()
        digest = bytes.fromhex(str(facts["digest"]))
        count = facts["slices"]
        refusal = facts["refusal"]
        most = self._settings.max_volume_bytes // (4 * self._settings.size_px**2)
        if not isinstance(count, int) or not 0 <= count <= most or len(digest) != 32:
            raise ValueError("decoder answered a wrong type")
        left_out = read_marks(facts["codes"], talk.exactly(len(files.slices)))

        # what the volume is: its look, and the digests of its slices
        seen = np.frombuffer(talk.exactly(LOOK_PX * LOOK_PX), np.uint8).reshape(LOOK_PX, LOOK_PX, 1)
        raw = talk.exactly(count * SLICE_DIGEST_BYTES)
        slices = tuple(
            raw[i : i + SLICE_DIGEST_BYTES] for i in range(0, len(raw), SLICE_DIGEST_BYTES)
        )
        if refusal is not None:
            nothing = np.empty((0, 0, 0, 2), np.uint8)
            return Cut(digest, slices, seen, Reason(str(refusal)), nothing, left_out)

        # the patches for the seed that follows from the volume and the site's key
        talk.say({"seed": seed_of(digest).hex()})
        talk.facts()
        half = (self._settings.patches + 1) // 2
        side = self._settings.size_px
        raw = talk.exactly(2 * half * side * side * 2)
        patches = np.frombuffer(raw, np.uint8).reshape(-1, side, side, 2)
        if not np.isin(patches[..., 1], (0, 255)).all():
            raise ValueError("decoder answered a mask that is none")
        return Cut(digest, slices, seen, None, patches, left_out)


def read_marks(codes: object, marks: bytes) -> dict[int, Reason]:
    """Return the files that are no part of a volume, by position, with their reasons.

    A mark is 0 for a file that is part of it, else 1 + the position of its code. Raises ValueError.
    """
    if not isinstance(codes, list) or max(marks) > len(codes) or 0 not in marks:
        raise ValueError("decoder answered a wrong type")
    reasons = [Reason(str(code)) for code in codes]
    return {at: reasons[mark - 1] for at, mark in enumerate(marks) if mark}


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
        """Yield what `work` returns for each request, or its refusal, in order.

        At most `ahead` answers a worker may wait.
        """
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
        """Wait for running work, then end all children."""
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
    """Yield each path's photograph or reason, in order, from `workers` child processes."""
    with decoders(settings, workers) as pool:
        for outcome in pool.each(Decoder.decode, paths):
            if isinstance(outcome, Unusable):
                yield outcome.reason
            else:
                yield outcome
