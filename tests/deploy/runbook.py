"""Reads the runbook and does it: every console block, in order, on the machines that it names.

    ```console title="operator"         on the operator's machine
    ```console title="hospital"         on each hospital's machine, at the same time
    ```console title="for hospital-a"   on the operator's machine, once for each hospital
    ```console title="every machine"    where the programs are installed
    ```console title="other hospitals"  on each hospital's but the second's
    ```console title="researcher"       on the researcher's
    <!-- carry: FROM PATH to TO -->      a file that people send, from machine to machine
    <!-- test: WORDS -->                 what the test does by hand, by its name
    <!-- not run: why -->                before a block: shown only
    <!-- exit 3 -->                      before a block: its last command ends with 3

Where a line says hospital-a, each hospital reads its own name.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.hosts import Consortium, Host
from tests.docs.transcripts import Step, fits, steps_of

RUNBOOK = Path(__file__).parents[2] / "deploy" / "RUNBOOK.md"
ITEM = re.compile(
    r"<!-- (?P<note>(?:exit|not run|carry|test)[^\n]*?) -->"
    r"|^```console(?: title=\"(?P<who>[^\"]+)\")?\n(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
CARRY = re.compile(r"carry: (\S+) (\S+) to (\S+)")
FIRST = "hospital-a"
SECOND = "hospital-b"
WHO = (
    *("operator", "hospital", f"for {FIRST}", "every machine", "other hospitals", "researcher"),
    *(FIRST, SECOND),
)


@dataclass(frozen=True)
class Block:
    """Commands of one block; `who` types them."""

    who: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Note:
    """What is carried, or what the test does."""

    text: str


def read_runbook(text: str) -> Iterator[Block | Note]:
    """Yield what the runbook does, in order."""
    before = ""
    for match in ITEM.finditer(text):
        if match["note"]:
            before = match["note"]
            if before.startswith(("carry:", "test:")):
                yield Note(before)
                before = ""
            continue
        line = text.count("\n", 0, match.start()) + 1
        if not before.startswith("not run"):
            assert match["who"] in WHO, f"line {line}: {match['who']}, expected one of {WHO}"
            code = int(before.removeprefix("exit ")) if before.startswith("exit ") else 0
            yield Block(match["who"], tuple(steps_of(match["body"], code, line)))
        before = ""


@dataclass
class Player:
    """Does the runbook; `by_hand` has what the test does itself, by name.

    Where such a function returns False, the block after it is left out.
    """

    people: Consortium
    by_hand: dict[str, Callable[[Consortium], bool | None]]
    pool: ThreadPoolExecutor  # a service ends with the thread that started it, so threads stay
    compared: int = 0

    def play(self, text: str) -> None:
        """Do everything that the text does."""
        wanted = True
        for item in read_runbook(text):
            if isinstance(item, Block):
                if wanted:
                    self._do(item)
                wanted = True
            elif item.text.startswith("test: "):
                done = self.by_hand[item.text.removeprefix("test: ")](self.people)
                wanted = done is not False
            else:
                self._carry(item.text)

    def _do(self, block: Block) -> None:
        """Do a block on its machines."""
        hospitals = self.people.hospitals
        several = dict(hospitals)
        if block.who == "every machine":
            several = {host.name: host for host in self.people.all() if host.installs}
        if block.who == "other hospitals":
            del several[SECOND]
        if block.who in ("hospital", "other hospitals", "every machine"):
            list(self.pool.map(lambda name: self._type(several[name], block, name), several))
        elif block.who == f"for {FIRST}":
            for name in hospitals:
                self._type(self.people.operator, block, name)
        else:
            self._type(self._host(block.who), block, FIRST)

    def _host(self, who: str) -> Host:
        """The one machine of that name."""
        people = self.people
        named = {"operator": people.operator, "researcher": people.researcher, **people.hospitals}
        return named[who]

    def _type(self, host: Host, block: Block, name: str) -> None:
        """Type the commands of a block, as one hospital's where it is one's."""
        for step in block.steps:
            command = step.command.replace(FIRST, name)
            printed = host.do(command, step.code)
            self.compared += 1
            shown = (step.shown or "").replace(FIRST, name)
            assert fits(printed, shown), (
                f"RUNBOOK.md:{step.line}: `{command}` on {host.name} printed\n{printed}\n"
                f"the runbook shows\n{shown}"
            )

    def _carry(self, note: str) -> None:
        """Carry a file from one side to the other: a person or the post does it."""
        found = CARRY.fullmatch(note)
        assert found, note
        source, path, target = found.groups()
        everybody = "hospital" in (source, target)
        for name in self.people.hospitals if everybody else (FIRST,):
            own = path.replace(FIRST, name)
            start = self._end(source, name).folder / own.lstrip("/")
            stop = self._end(target, name).folder / own.lstrip("/")
            if start.is_dir():
                shutil.copytree(start, stop, dirs_exist_ok=True)
            else:
                stop.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(start, stop)

    def _end(self, who: str, name: str) -> Host:
        """Where something is carried from or to."""
        return self.people.hospitals[name] if who == "hospital" else self._host(who)
