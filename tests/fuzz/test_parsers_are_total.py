"""Every parser of outside bytes gives a value or one of our own errors, quickly and in bounds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from common.errors import Bug, RefusedError
from tests.fuzz.harness import Fault, Parser, Target, memory_folder, replay, run
from tests.fuzz.mutation import damaged, exchanged
from tests.fuzz.targets import TARGETS

SEED = "every day the same"


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_gives_a_value_or_one_of_our_own_errors(name: str) -> None:
    target = TARGETS[name]
    with memory_folder() as folder:
        outcome = run(target, target.build(folder), target.few, SEED)
    assert not outcome.faults, "\n".join(_kept(name, fault) for fault in outcome.faults)
    # an input that is as it should be gets through: the parser was really reached
    assert outcome.inputs == target.few
    assert outcome.returned


def _kept(name: str, fault: Fault) -> str:
    """Keep the input, and name the command that tries it again."""
    path = Path("fuzz-faults") / f"{name}-{abs(hash(fault.data)):x}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(fault.data)
    return f"{fault.what}: python -m tests.fuzz --target {name} --replay {path}"


def _target(call: object, memory_mib: int = 64) -> tuple[Target, Parser]:
    """A parser that does what `call` does."""
    parser = Parser(call, (lambda rng: b"input",))  # type: ignore[arg-type]
    return Target("odd", (), lambda folder: parser, memory_mib), parser


def _raise(error: BaseException) -> None:
    raise error


FAULTS = {
    "another exception": lambda data: _raise(KeyError("k")),
    "a bug of ours": lambda data: _raise(Bug("broken")),
    "a Rust panic, which is no Exception": lambda data: _raise(BaseException("panic")),
    "a call that takes more memory than its cap": lambda data: bytearray(1 << 33),
    "deep recursion": lambda data: _recurse(),
}


def _recurse() -> None:
    _recurse()


@pytest.mark.parametrize("sentence", FAULTS)
def test_the_harness_sees_a_fault(sentence: str) -> None:
    target, parser = _target(FAULTS[sentence])
    outcome = run(target, parser, 3, "0")
    # three times the same is one fault
    assert [fault.data for fault in outcome.faults] == [b"input"]
    assert replay(target, parser, b"input") is not None


def test_the_harness_ends_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.ALARM_S", 0.2)
    target, parser = _target(lambda data: all(True for _ in iter(lambda: True, False)))
    fault = replay(target, parser, b"input")
    assert fault is not None and fault.what.startswith("Hang")


def test_our_own_errors_are_no_faults() -> None:
    target, parser = _target(lambda data: _raise(RefusedError("no")))
    assert not run(target, parser, 3, "0").faults


def test_the_same_seed_makes_the_same_inputs() -> None:
    for maker in (damaged(b"abc", b"def"), exchanged(b'{"a": [1, 2]}')):
        first = [maker(Random("7")) for _ in range(3)]
        assert first == [maker(Random("7")) for _ in range(3)]
        rng = Random("7")
        assert len({maker(rng) for _ in range(50)}) > 40
