"""The Flower ClientApp of a site: records in, signed bytes to the daemon, records out.

In: Flower messages of type `train` and `query.synthesize`, each one `Sealed`.
Out: a reply with one `Sealed`, or `Error(2, "E-...")`.
Guarantees: an error that leaves is a code of a fixed shape, never the text of an exception.
Not covered: every decision; `answer` (client/daemon/site.py) takes them.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.state.jobs import Stopped
from common.errors import KohortError, RefusedError
from common.wire.messages import Sealed
from common.wire.tensors import npy_bytes

Answer = Callable[[Sealed], Sealed]
Note = Callable[[KohortError | None], None]  # why an instruction was refused; None: answered
REFUSED = 2
log = logging.getLogger(__name__)
CODE = re.compile(r"E(-[A-Z0-9]+){1,6}")
# the text of these is made of the plan's and the policy's constants: it may stand in a log
PLAIN_CODES = ("E-PLAN-", "E-POLICY-", "E-CAP", "E-FILTER")


def ignore(error: KohortError | None) -> None:
    """Note nothing."""


def build_app(answer: Answer, note: Note = ignore) -> ClientApp:
    """Return the ClientApp that gives every instruction to `answer` and returns its reply.

    `note` learns why an instruction was refused, and when one is answered again.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply_to(message, answer, note)

    @app.query("synthesize")
    def synthesize(message: Message, context: Context) -> Message:
        return reply_to(message, answer, note)

    return app


def reply_to(message: Message, answer: Answer, note: Note = ignore) -> Message:
    """Return the reply of `answer`, or an error with a code and no text."""
    try:
        record = record_of(answer(sealed_of(message.content)))
        note(None)
        return Message(record, reply_to=message)
    except Stopped:
        raise  # no reply: the transport keeps the message for the next start
    except KohortError as error:
        log.warning("answered with %s", explain(error))
        note(error)
        return Message(Error(REFUSED, public_code(error)), reply_to=message)
    except Exception as error:
        # The text of an unknown exception could hold a patient's name: log its place alone.
        place = traceback.extract_tb(error.__traceback__)[-1]
        file = Path(place.filename).name
        log.error("answered with E-BUG (%s in %s:%s)", type(error).__name__, file, place.lineno)
        return Message(Error(REFUSED, "E-BUG"), reply_to=message)


def public_code(error: KohortError) -> str:
    """Return the error's code if it has the shape of one, else E-BUG."""
    return error.code if CODE.fullmatch(error.code) else "E-BUG"


def explain(error: KohortError) -> str:
    """Return code and fix for this site's staff, and the cause where it names no file of a patient.

    `PLAIN_CODES` are such; of any other error the text is left out.
    """
    text = public_code(error)
    if text.startswith(PLAIN_CODES):
        text += f": {error}"
    return f"{text} ({error.hint or 'no hint'})"


def record_of(sealed: Sealed) -> RecordDict:
    """Return the Flower record of one sealed message."""
    payload = Array(np.frombuffer(sealed.payload, np.uint8))
    head = ConfigRecord({"header": sealed.header, "signature": sealed.signature})
    return RecordDict({"sealed": head, "payload": ArrayRecord({"payload": payload})})


def sealed_of(record: RecordDict) -> Sealed:
    """Return the sealed message in a Flower record.

    Raises RefusedError (E-RECORD) for any other content.
    """
    head = record.get("sealed")
    arrays = record.get("payload")
    if len(record) != 2 or not isinstance(head, ConfigRecord):
        raise _unknown_record()
    if not isinstance(arrays, ArrayRecord) or len(head) != 2 or len(arrays) != 1:
        raise _unknown_record()
    header = head.get("header")
    signature = head.get("signature")
    if not isinstance(header, bytes) or not isinstance(signature, bytes):
        raise _unknown_record()
    payload = arrays.get("payload")
    if not isinstance(payload, Array) or payload.dtype != "uint8":
        raise _unknown_record()
    if payload.stype != "numpy.ndarray":
        raise _unknown_record()
    try:
        return Sealed(header, npy_bytes(payload.data), signature)
    except RefusedError as error:
        raise _unknown_record() from error


def _unknown_record() -> RefusedError:
    """Return the refusal of a record that is not one sealed message."""
    return RefusedError(
        "record: expected one sealed message: header, signature, payload", code="E-RECORD"
    )
