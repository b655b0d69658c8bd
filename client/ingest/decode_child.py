"""Decodes in a child process that can be lost: the child's side.

Run by decode.py as `python -m client.ingest.decode_child`.
In: settings, then one request a line on stdin.
Out: answers on stdout: a length, JSON, raw bytes.
Guarantees: capped memory, no file it may write, no core dump. The parent discards stderr and keeps
the time; an alarm ends an orphan. Where a refused file's codec keeps memory, the child says so with
the refusal and ends: no later file pays for it.

A photograph (volumes: volumes.py):
  1. open it, following no link and waiting on no pipe
  2. check the size cap
  3. find the format by content
  4. decode
  5. digest
  6. frame, and look for text in the frame where the site wants it
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from client.ingest.colour import check_colour
from client.ingest.files import open_regular
from client.ingest.images import Framer
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import ENDS, Choices, Photograph, Settings, Take, Wanted
from client.ingest.stills import kind_of, read_photograph

KEPT_SHARE = 8  # a child that keeps more than this part of its limit after a refusal ends


def read_file(path: str, settings: Settings) -> Photograph:
    """Return one file's photograph; raises Unusable."""
    # (1, 2) open it and check the size cap
    with open_regular(path, settings.max_file_bytes) as file:
        return _photograph(file, settings)


def _photograph(file: BinaryIO, settings: Settings) -> Photograph:
    """Return the photograph in an open file, by steps 3 to 6."""
    # (3) find the format by content
    head = file.read(132)
    file.seek(0)
    is_dicom = head[128:] == b"DICM"
    patient_id = ""
    issuer = ""
    laterality = 0
    study = ""
    silent = settings.wanted.named
    if silent and settings.choices.refuse_silent and not is_dicom:
        raise Unusable(Reason.SILENT_HEADER)

    # (4) decode
    if is_dicom:
        from client.ingest.dicom import read_dicom

        image = read_dicom(
            file,
            settings.modalities,
            settings.window,
            settings.max_pixel_bytes,
            settings.wanted,
            settings.choices,
        )
        pixels = image.pixels
        patient_id = image.patient_id
        issuer = image.issuer
        laterality = image.laterality
        silent = image.silent
        study = image.study
    elif kind_of(head) is not None:
        try:
            pixels = read_photograph(file, settings.max_pixel_bytes)
        except (Unusable, MemoryError):
            raise
        except Exception as error:
            raise Unusable(Reason.UNDECODABLE) from error
    else:
        raise Unusable(Reason.UNKNOWN_FORMAT)

    # (5) digest of the decoded pixels, before they are framed
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    # (6) frame
    is_fundus = "OP" in settings.modalities
    framer = Framer(pixels, settings.channels, field_of_view=is_fundus)
    square = framer.frame(settings.size_px)
    if settings.channels == 3:
        check_colour(square)
    if settings.choices.find_text:
        check_text(framer, settings.size_px)
    whose = (patient_id, issuer, laterality)
    return Photograph(square, digest.digest(), is_dicom, *whose, silent, study)


def check_text(framer: Framer, size_px: int) -> None:
    """Refuse text in what the frame shows, looked at in a size that bounds the cost."""
    from client.ingest.text_detector import load_detector, text_sides

    for side in text_sides(size_px):
        square = framer.look(side)
        if square is not None:
            return load_detector().check(square)


def serve() -> None:
    """Read the settings from the first line of stdin, then answer one request a line."""
    # answers have a descriptor of their own: a codec that prints must not garble one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    # settings, then limits, then codecs
    settings = _read_settings(sys.stdin.readline())
    _confine(settings.memory_bytes)
    import client.ingest.dicom  # noqa: F401  loaded once, before the first file

    if settings.choices.find_text:
        from client.ingest.text_detector import load_detector

        load_detector()

    # one answer a request; whoever runs out of memory says so and ends
    _answer(answers, {"ready": True})
    most_bytes = _address_bytes() + settings.memory_bytes // KEPT_SHARE
    for line in iter(sys.stdin.readline, ""):
        refused: dict[str, object] = {}
        try:
            _serve_one(json.loads(line), settings, answers)
        except Unusable as refusal:
            refused = {"reason": refusal.reason.value, "at": getattr(refusal, "at", None)}
        except MemoryError:
            refused = {"reason": Reason.OUT_OF_MEMORY.value, ENDS: True}
        except Exception:
            refused = {"reason": Reason.UNDECODABLE.value}
        signal.alarm(0)
        if refused:
            ends = ENDS in refused or _address_bytes() > most_bytes
            _answer(answers, refused | {ENDS: ends})
            if ends:
                return


def _address_bytes() -> int:
    """Return how much address space this process takes, which is what its limit is on."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _read_settings(line: str) -> Settings:
    """Return the settings in one line of JSON; its lists become tuples again."""
    raw = json.loads(line)
    raw["modalities"] = tuple(raw["modalities"])
    if raw["window"]:
        raw["window"] = tuple(raw["window"])
    raw["wanted"] = Wanted.read(raw["wanted"])
    raw["choices"] = Choices(**raw["choices"])
    raw["take"] = Take(**raw["take"])
    return Settings(**raw)


def _serve_one(request: dict[str, Any], settings: Settings, answers: BinaryIO) -> None:
    """Answer one request: a mask to fit, a volume to cut, a file to scan or glance at, or one."""
    if "fits" in request:
        from client.ingest.volumes import fits

        _set_alarm(settings.volume_timeout_s)
        return _answer(answers, {"fits": fits(request["slices"], request["fits"], settings.caps)})
    if "slices" in request:
        _set_alarm(settings.volume_timeout_s)
        return _serve_volume(request, settings, answers)
    _set_alarm(settings.timeout_s)
    if "scan" in request:
        from client.ingest.scanning import scan

        return _answer(answers, asdict(scan(request["scan"], settings.caps)))
    if "glance" in request:
        from client.ingest.glance import glance

        return _answer(answers, asdict(glance(request["glance"], settings)))
    photograph = read_file(request["photograph"], settings)
    return _answer(answers, _facts_of(photograph), photograph.pixels.tobytes())


def _set_alarm(limit_s: float) -> None:
    """End this process soon after the parent would have: an orphan does not decode for ever."""
    signal.alarm(int(limit_s) + 5)


def _serve_volume(request: dict[str, Any], settings: Settings, answers: BinaryIO) -> None:
    """Answer what the volume is; then, if it has a mask, its patches for the parent's seed."""
    from client.ingest.volumes import patches, read_volume

    # what the volume is
    mask = request["mask"] and tuple(request["mask"])
    volume = read_volume(request["slices"], mask, settings.caps)
    codes = sorted({reason.value for reason in volume.left_out.values()})
    facts = {
        "digest": volume.digest.hex(),
        "slices": len(volume.slices),
        "refusal": volume.refusal and volume.refusal.value,
        "codes": codes,
    }
    # a byte a file: 0 if it is part of the volume, else 1 + the position of its code
    marks = bytearray(len(request["slices"]))
    for at, reason in volume.left_out.items():
        marks[at] = 1 + codes.index(reason.value)
    _answer(answers, facts, bytes(marks) + volume.look.tobytes() + b"".join(volume.slices))

    # its patches, once the parent has derived the seed from the digest
    if volume.refusal is None:
        seed = bytes.fromhex(json.loads(sys.stdin.readline())["seed"])
        _answer(answers, {}, patches(volume, seed, settings.patches, settings.size_px).tobytes())


def _facts_of(photograph: Photograph) -> dict[str, object]:
    """All of a photograph but its pixels, for JSON."""
    return {
        "digest": photograph.digest.hex(),
        "is_dicom": photograph.is_dicom,
        "patient_id": photograph.patient_id,
        "issuer": photograph.issuer,
        "laterality": photograph.laterality,
        "silent": photograph.silent,
        "study": photograph.study,
    }


def _confine(memory_bytes: int) -> None:
    """Cap memory, writing, core dumps and open files of this process."""
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))


def _answer(pipe: BinaryIO, facts: dict[str, object], data: bytes = b"") -> None:
    """Write a length, JSON and raw bytes."""
    text = json.dumps(facts).encode()
    pipe.write(len(text).to_bytes(4, "big") + text)
    pipe.write(data)
    pipe.flush()


if __name__ == "__main__":
    serve()
