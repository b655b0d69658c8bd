"""Gathers the replies of one round until the round may close: steps 1 to 4 of loop.py.

In: an instruction and its payload. Out: accepted replies on disk, the outcome by site.
Guarantees: a reply is on disk before it counts; a round never closes below the quorum;
`kill -9` loses no accepted reply.
"""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import replace
from pathlib import Path

from common.errors import RefusedError
from common.privacy import boundary
from common.storage.files import atomic_write
from common.study.round_names import round_name
from common.wire.messages import Header
from server.operator.sites import Site
from server.rounds.exchange import Exchange, Grid, Reply
from server.rounds.faults import CODE, OURS, code_of
from server.rounds.intake import Accepted, Instruction, accept, check_repeated, signer_of
from server.rounds.orders import Abandoned, extension
from server.rounds.pictures import Gallery, earlier_images
from server.rounds.record import read_sealed, remove_file, store_sealed
from server.rounds.study_run import StudyRun

REGISTRY_S = 1.0  # how often the sites' states are read again
STILL_S = 30.0  # a turn of the loop that takes longer: this machine stood still, not the sites
UNKNOWN_STATEMENT = "E-STATEMENT"
log = logging.getLogger("kohort.server")


class Gathering:
    """One open round: what was asked, and what of the answers is accepted."""

    def __init__(self, run: StudyRun, grid: Grid, instruction: Instruction, payload: bytes) -> None:
        self._run = run
        self._instruction = instruction
        self._exchange = Exchange(run, grid, payload)
        self._parts: dict[str, dict[int, Header]] = {}
        self._images: dict[str, int] = {}
        self._reported = ("", False)
        self._gallery = Gallery()
        self._turn = time.monotonic()
        self._deadline = self._turn + run.study.round_deadline_s
        self._extension = 0

    @property
    def complete(self) -> frozenset[str]:
        """The sites whose every part is accepted."""
        whole = []
        for site, parts in self._parts.items():
            if len(parts) == parts[0].parts:
                whole.append(site)
        return frozenset(whole)

    def gather(self) -> None:
        """Return once the round may close; raises Abandoned when the operator ends the study."""
        # (1) replies that an earlier process accepted
        if self._instruction.phase == "synthesize":
            root = self._run.record.root
            for site, images in earlier_images(root.parent, root):
                self._gallery.add(site, images, earlier=True)
        self._restore()
        refresh = 0.0
        awaited: frozenset[str] = frozenset()
        try:
            while True:
                self._excuse_standstill()
                # (2), (3) ask the active sites; the exchange repeats itself
                if time.monotonic() >= refresh:
                    self._obey_operator()
                    awaited = self._ask_sites()
                    refresh = time.monotonic() + REGISTRY_S
                # (5) close when all have answered, or late with a quorum
                late = time.monotonic() >= self._deadline
                if self._may_close(awaited, late=late):
                    return
                self._report(awaited, late=late)
                # (4) take one reply
                reply = self._exchange.next()
                if reply is not None:
                    self._take(reply)
                    refresh = 0.0
        finally:
            self._exchange.close()

    def read(self, site: str) -> Accepted:
        """Return the accepted update of a site from disk, through the intake once more."""
        return self._read(site, 0)

    def outcome(self) -> dict[str, object]:
        """Return the round's record: accepted, refused and missing sites by name."""
        asked = self._instruction
        refused = self._run.record.refusals(asked.phase, asked.model, asked.round)
        accepted = self.complete
        planned = {site.name for site in self._run.study.sites}
        codes = {name: refused[name] for name in sorted(refused) if name not in accepted}
        missing = planned - accepted - set(refused)
        return {"accepted": sorted(accepted), "refused": codes, "missing": sorted(missing)}

    # --- (1) what an earlier process accepted

    def _restore(self) -> None:
        """Check again what is on disk; what does not pass is deleted and asked anew."""
        for name, site in sorted(self._run.active_sites().items()):
            part = 0
            parts = 1
            while part < parts and self._file(name, part).exists():
                try:
                    accepted = self._read(name, part)
                except OURS:
                    raise
                except Exception:
                    remove_file(self._file(name, part))
                    break
                self._count(site, part, accepted)
                part += 1
                parts = accepted.header.parts

    # --- (2) and (3) whom to ask

    def _ask_sites(self) -> frozenset[str]:
        """Ask the active sites and drop the others; return the sites that the round waits for."""
        known = self._run.registry.sites()
        active = self._run.active_sites()
        for name in (self._exchange.sites() | set(self._parts)) - set(active):
            self._exchange.drop(name)
            self._forget(name)
        for name, site in active.items():
            if name not in self.complete:
                next_part = len(self._parts.get(name, {}))
                self._exchange.ask(site, self._part_instruction(name, next_part))
        # Who may not take part is not waited for; who is unknown, in the first round alone.
        awaited = self._admitted()
        if not self._is_first_round():
            awaited &= set(known)
        # A site that was silent for some rounds is not waited for until it is online again.
        silent = self._run.record.silent_sites(self._run.limits.silent_rounds)
        back = {name for name in silent if self._exchange.reached(name)}
        return frozenset(awaited - (silent - back))

    def _admitted(self) -> set[str]:
        """The sites of the plan that are neither in quarantine nor revoked, enrolled or not."""
        admitted = {site.name for site in self._run.study.sites}
        for name, site in self._run.registry.sites().items():
            if site.state in ("quarantined", "revoked"):
                admitted.discard(name)
        return admitted

    def _obey_operator(self) -> None:
        """Read the operator's orders again: an abandoned study ends, an extension counts once."""
        if self._run.record.abandoned():
            raise Abandoned
        entry = extension(self._run.record, self._place())
        if entry is not None and entry.seq > self._extension:
            self._extension = entry.seq
            later = time.monotonic() + float(entry.data["seconds"])
            self._deadline = max(self._deadline, later)

    def _excuse_standstill(self) -> None:
        """Give the round the time again in which this process stood still.

        A paused machine wakes after the deadline, with answers that nobody took yet.
        """
        now = time.monotonic()
        if now - self._turn > STILL_S:
            self._deadline += now - self._turn
        self._turn = now

    def _is_first_round(self) -> bool:
        """Whether nothing of the study is closed yet.

        Only then the study waits for a hospital that is not even enrolled.
        """
        return not self._run.record.any_closed()

    # --- (5) when to close

    def _may_close(self, awaited: frozenset[str], *, late: bool) -> bool:
        """Whether every awaited site has answered, or it is late; never below the quorum."""
        if len(self.complete) < self._run.study.quorum:
            return False
        return late or not awaited - self.complete

    def _report(self, awaited: frozenset[str], *, late: bool) -> None:
        """Journal what the round waits for, when it changes: names and codes alone.

        Below the quorum the study is paused when the deadline has passed, and at once where the
        sites that may take part are too few.
        """
        quorum = self._run.study.quorum
        missing = sorted(awaited - self.complete)
        text = f"waiting for {', '.join(missing)}"
        if not missing:
            text = f"has {len(self.complete)} of the {quorum} answers that it needs"
        paused = late or len(self._admitted()) < quorum
        if (text, paused) == self._reported:
            return
        self._reported = (text, paused)
        if paused:
            self._run.record.note_paused(self._place(), "E-QUORUM", text)
        else:
            self._run.record.note_waiting(text)
        state = "paused, E-QUORUM: " if paused else ""
        log.info("%s: %s%s", self._name(), state, text)

    def _name(self) -> str:
        """The round as the log names it."""
        asked = self._instruction
        name = round_name(self._run.study, asked.phase, asked.model, asked.round)
        return f"{self._run.study.name}: {name}"

    # --- (4) one reply

    def _take(self, reply: Reply) -> None:
        """Store an accepted reply; a site whose reply is refused goes into quarantine."""
        site = self._run.active_sites().get(reply.site)
        if reply.broken is not None and site is not None:
            self._quarantine(site.name, self._key(reply.part), code_of(reply.broken))
            self._keep_evidence(reply, reply.broken)
            return
        if reply.record is None:
            self._note_code(reply)
            return
        if site is None:
            return
        try:
            sealed = reply.sealed_message()
            # A repeated reply must be the accepted one.
            known = self._parts.get(site.name, {}).get(reply.part)
            if known is not None:
                check_repeated(sealed, site.name, signer_of(sealed, site), known.digest)
                return
            # A new reply passes the intake, or its site goes into quarantine.
            asked = self._part_instruction(site.name, reply.part)
            accepted = accept(sealed, site.name, signer_of(sealed, site), asked)
            if "images" in accepted.arrays and asked.phase == "synthesize":
                self._gallery.check(site.name, accepted.arrays["images"])
        except RefusedError as error:
            self._quarantine(site.name, self._key(reply.part), error.code)
            return
        except OURS:
            raise
        except Exception as error:
            # whatever a site's bytes do to our code is that site's fault, and ends no study
            self._quarantine(site.name, self._key(reply.part), CODE)
            self._keep_evidence(reply, error)
            return
        # First on disk, then journaled and counted.
        store_sealed(self._file(site.name, reply.part), sealed)
        self._count(site, reply.part, accepted)
        log.info("%s: %s: accepted", self._name(), site.name)

    def _keep_evidence(self, reply: Reply, error: Exception) -> None:
        """Keep a reply that our code could not handle, and where; for the operator alone.

        One a site: a site in quarantine sends no second one. A full disk keeps none.
        """
        folder = self._run.record.root / "faults"
        place = "".join(traceback.format_exception(error))
        try:
            atomic_write(folder / f"{reply.site}.txt", place.encode(), mode=0o600)
            store_sealed(folder / f"{reply.site}.sealed", reply.sealed_message())
        except Exception as unkept:
            log.warning("%s: no evidence kept (%s)", reply.site, type(unkept).__name__)

    def _note_code(self, reply: Reply) -> None:
        """Journal the code that a site answers with, when it is a new one."""
        if reply.lost:
            return
        if reply.code == UNKNOWN_STATEMENT and reply.site not in self._run.without_log:
            # a site of a version without the log: it is asked anew, and no head is named to it
            self._run.without_log.add(reply.site)
            self._exchange.drop(reply.site)
            return
        if self._run.record.note_code(self._key(reply.part), reply.site, reply.code):
            log.warning("%s: %s: answers %s; asked again", self._name(), reply.site, reply.code)

    def _quarantine(self, site: str, key: str, code: str) -> None:
        """Drop everything of a site in this round."""
        self._run.quarantine(site, key, code)
        self._exchange.drop(site)
        self._forget(site)

    def _forget(self, site: str) -> None:
        """Take a site that may no longer take part out of the open round."""
        for part in self._parts.pop(site, {}):
            remove_file(self._file(site, part))
        self._images.pop(site, None)
        self._gallery.forget(site)

    def _count(self, site: Site, part: int, accepted: Accepted) -> None:
        """Count an accepted reply whose bytes are on disk."""
        digest = accepted.header.digest
        key = self._key(part)
        if self._run.record.accepted_digest(key, site.name) != digest:
            signer = signer_of(accepted.sealed, site)
            self._run.record.note_accepted(key, site.name, digest, signer)
        # the site's signature over the head of this operator's log
        self._run.log.note_reply(accepted.sealed, accepted.header, signer_of(accepted.sealed, site))
        # the receipt for the site's head, over all studies
        commitment = str(accepted.header.statement[boundary.HEAD_COMMITMENT])
        self._run.registry.note_head(site.name, commitment)
        self._parts.setdefault(site.name, {})[part] = accepted.header
        images = accepted.arrays.get("images")
        if self._instruction.phase == "synthesize" and images is not None:
            self._images[site.name] = self._images.get(site.name, 0) + len(images)
            self._gallery.add(site.name, images)

    def _read(self, site: str, part: int) -> Accepted:
        """An accepted reply from disk, through the intake."""
        sealed = read_sealed(self._file(site, part))
        if part in self._parts.get(site, {}):
            asked = replace(self._instruction, part=part)
        else:
            asked = self._part_instruction(site, part)
        return accept(sealed, site, signer_of(sealed, self._run.registry.get(site)), asked)

    def _part_instruction(self, site: str, part: int) -> Instruction:
        """The instruction for a site's first part, or for one that its first part announced."""
        first = self._parts.get(site, {}).get(0)
        if part == 0 or first is None:
            return self._instruction
        before = self._images.get(site, 0)
        return replace(self._instruction, part=part, parts=first.parts, images_before=before)

    def _file(self, site: str, part: int) -> Path:
        """Where an accepted reply lies."""
        asked = self._instruction
        return self._run.record.reply_file(asked.phase, asked.model, asked.round, site, part)

    def _key(self, part: int) -> str:
        """The journal key of a part."""
        return f"{self._place()}/{part}"

    def _place(self) -> str:
        """The journal key of the round."""
        asked = self._instruction
        return self._run.record.place(asked.phase, asked.model, asked.round)
