"""The operator's log: what the consortium did, and the sites' signatures over its heads.

In: events; replies in which a site repeated a head that it was sent. Out: entries; RefusedError
(E-LOG) for the first broken one, PolicyError (E-ROLLBACK) for a log that is older than what a site
countersigned.
Guarantees: those of common/audit_log. A site's signature over a head is kept with the header that
it signed, so it proves itself.
Not covered: a copy of the whole folder from before a head, until a site's next reply names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.audit_log.log import TIME, AuditLog, SigningKey
from common.errors import PolicyError, RefusedError, damage_named
from common.privacy.boundary import OPERATOR_LOG
from common.storage.journal import Entry, Journal
from common.wire import signing
from common.wire.messages import Header, Sealed, open_header

FILE = "countersigned.sqlite"
COUNTERSIGNED = "countersigned"


class OperatorLog(AuditLog):
    """The log in the operator's state folder."""

    def __init__(self, folder: Path, key: SigningKey | None = None) -> None:
        super().__init__(folder, key)
        self._replies_path = folder / FILE
        self._replies: Journal | None = None

    def note_issued(self, of: str, certificate: x509.Certificate) -> None:
        """Note a certificate, once. `of`: `server`, or `site:NAME`."""
        ends = certificate.not_valid_after_utc.strftime(TIME)
        self.note("certificate-issued", once=True, of=of, ends=ends)

    def note_reply(self, sealed: Sealed, header: Header, sign_key: str) -> None:
        """Keep a site's signature over a head of this log, once a site and head.

        `sign_key`: the line of the key that signed.
        """
        head = str(header.statement.get(OPERATOR_LOG, ""))
        place = f"{head}/{header.sender}"
        if not head or self._open_replies().latest(place) is not None:
            return
        data = {
            "key": sign_key,
            "header": sealed.header.decode("ascii"),
            "signature": sealed.signature.decode("ascii"),
        }
        self._open_replies().append(place, COUNTERSIGNED, data)

    def countersigned(self) -> dict[str, str]:
        """Return each site's newest signature: the head that it named, by site's name."""
        return {site: head for head, site in map(_place, self._rows())}

    def verify(self, keys: Sequence[Ed25519PublicKey]) -> int:
        """As of `AuditLog`; then, that every head that a site countersigned is of this log."""
        # the countersignatures first: a running server may write meanwhile
        rows = self._rows()
        count = super().verify(keys)
        for row in rows:
            _check_reply(row, *_place(row))
        self._refuse_foreign_heads(rows)
        return count

    def check(self, keys: Sequence[Ed25519PublicKey]) -> None:
        """As of `AuditLog`, and that the log is not older than what a site countersigned."""
        rows = self._rows()
        super().check(keys)
        self._refuse_foreign_heads(rows)

    def _refuse_foreign_heads(self, rows: Sequence[Entry]) -> None:
        """Raise PolicyError (E-ROLLBACK) for a head that a site signed and this log never had."""
        known = {entry.digest for entry in self.entries()}
        for head, site in map(_place, rows):
            if head not in known:
                raise PolicyError(
                    f"log: {site} countersigned the head {head[:16]}, which this log never had: it "
                    "is older than that, or another one",
                    hint="put the newest copy of the whole state folder back; if there is none, "
                    "tell the sites, which hold signed answers that name this head",
                    code="E-ROLLBACK",
                )

    def close(self) -> None:
        """Close the files."""
        super().close()
        if self._replies is not None:
            self._replies.close()
        self._replies = None

    def _rows(self) -> list[Entry]:
        """Every countersignature, oldest first."""
        if not self._replies_path.is_file():
            return []
        return self._open_replies().entries()

    def _open_replies(self) -> Journal:
        """The file of the countersignatures."""
        if self._replies is None:
            self._replies = Journal(self._replies_path)
        return self._replies


def _place(row: Entry) -> tuple[str, str]:
    """Head and site of a row."""
    head, _, site = row.key.partition("/")
    return head, site


def _check_reply(row: Entry, head: str, site: str) -> None:
    """Raise RefusedError (E-LOG) unless the site signed a header that names the head."""
    damage = RefusedError(
        f"log: the countersignature of {site} over {head[:16]} is not what was written",
        hint="put the newest copy of the whole state folder back",
        code="E-LOG",
    )
    with damage_named(damage):
        text, signature = row.data["header"].encode(), row.data["signature"].encode()
        key = signing.parse_public(row.data["key"])
    try:
        header = open_header(text, signature, key)
    except RefusedError as error:
        raise damage from error
    if header.statement.get(OPERATOR_LOG) != head or header.sender != site:
        raise damage
