"""The exception tree: codes and exit codes; a fault of the disk is put into words."""

import json
from pathlib import Path

import pytest

import common.errors
from kohort import errors

EXIT_CODES = {
    errors.RefusedError: 1,
    errors.ConfigurationError: 2,
    errors.PolicyError: 3,
    errors.PeerError: 4,
    errors.EnvironmentFault: 5,
    errors.Bug: 70,
}


@pytest.mark.parametrize("kind", EXIT_CODES, ids=lambda kind: kind.__name__)
def test_each_kind_has_its_exit_code_and_a_stable_code(kind: type[errors.KohortError]) -> None:
    error = kind("what", hint="the fix")
    assert error.exit_code == EXIT_CODES[kind]
    assert error.code.startswith("E-")
    assert error.hint == "the fix"
    assert kind("what", code="E-OTHER").code == "E-OTHER"


def test_a_missing_file_is_named_with_what_to_do() -> None:
    with (
        pytest.raises(errors.EnvironmentFault, match="cannot read /none: No such file") as caught,
        errors.disk_faults_named("cannot read", Path("/none")),
    ):
        Path("/none").read_bytes()
    assert caught.value.hint == "check the path and its owner"
    assert caught.value.code == "E-ENVIRONMENT"


def test_the_two_sides_use_the_same_tree() -> None:
    for name in common.errors.__all__:
        assert getattr(common.errors, name) is getattr(errors, name)


FOREIGN = {
    "a number that is too long": lambda: int("9" * 5000),
    "nesting": lambda: json.loads("[" * 100_000),
    "what a library has not written yet": lambda: _raise(NotImplementedError()),
    "an error of its own": lambda: _raise(type("TheirError", (Exception,), {})()),
    "a picture that is cut, which Pillow calls an OSError": lambda: _raise(OSError("truncated")),
}


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("sentence", FOREIGN)
def test_whatever_a_reader_of_foreign_bytes_raises_is_the_named_damage(sentence: str) -> None:
    damage = errors.RefusedError("file: damaged", code="E-OTHER")
    with pytest.raises(errors.RefusedError) as caught, errors.damage_named(damage):
        FOREIGN[sentence]()
    assert caught.value is damage


OURS = (errors.PolicyError("k"), errors.Bug("b"), MemoryError(), OSError(28, "No space left"))


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_our_own_errors_and_this_machines_are_no_damage(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, errors.damage_named(errors.RefusedError("damaged")):
        raise error
    assert caught.value is error
