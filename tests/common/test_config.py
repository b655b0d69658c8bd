"""YAML in: every problem at once, with file, line and key."""

import time
from pathlib import Path

import pytest

from common.config import FrozenModel, load_yaml, parse_yaml
from common.errors import ConfigurationError, RefusedError


class Inner(FrozenModel):
    epsilon: float
    steps: int = 1


class Outer(FrozenModel):
    name: str
    privacy: Inner
    sites: tuple[Inner, ...] = ()
    rate: float = 0.0
    flag: bool = False


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse_yaml(text, Outer, Path("study.yaml"))
    return caught.value.problems


def test_all_problems_are_named_at_once_by_line_and_key() -> None:
    found = problems("name: 3\nprivacy:\n  epsilonn: 8\n  steps: many\nnmae: x\n")
    assert found == (
        "study.yaml:1: name: expected text, got 3",
        "study.yaml:2: privacy.epsilon: required, but missing",
        "study.yaml:3: privacy.epsilonn: unknown key; did you mean 'epsilon'?",
        "study.yaml:4: privacy.steps: expected a whole number, got 'many'",
        "study.yaml:5: nmae: unknown key; did you mean 'name'?",
    )


def test_scientific_notation_is_a_number_and_quoted_text_is_not() -> None:
    model = parse_yaml(
        "name: '1e-6'\nprivacy: {epsilon: 1e-6}\nrate: 1E5\nflag: true\n", Outer, Path("x.yaml")
    )
    assert model.privacy.epsilon == 1e-6
    assert model.name == "1e-6"
    assert model.rate == 1e5
    assert model.flag is True


def test_a_wrong_element_of_a_list_is_named_by_its_index() -> None:
    found = problems(
        "name: x\nprivacy: {epsilon: 1}\nsites:\n- {epsilon: 1}\n- {epsilon: 2, step: 3}\n"
    )
    assert found == ("study.yaml:5: sites[1].step: unknown key; did you mean 'steps'?",)


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "a key given twice": (
            "name: x\nname: y\nprivacy: {epsilon: 1}\n",
            "study.yaml:2: name: given twice",
        ),
        "an alias": (
            "name: &a x\nprivacy: {epsilon: 1}\n",
            "study.yaml:1: anchors, aliases and tags are not allowed",
        ),
        "a tag": (
            "name: !!python/object:os.system x\n",
            "study.yaml:1: anchors, aliases and tags are not allowed",
        ),
        "not a mapping": ("- 1\n", "study.yaml:1: expected `key: value` lines"),
        "nothing": ("", "study.yaml:1: expected `key: value` lines"),
        "broken YAML": ("name: [1\n", "not readable as YAML"),
        "not a number": ("name: x\nprivacy: {epsilon: .nan}\n", "privacy.epsilon"),
        "too deep": ("name: x\nprivacy: " + "[" * 60 + "]" * 60 + "\n", "nested deeper"),
    }.values(),
    ids=lambda value: value[:20],
)
def test_bad_files_end_with_one_clear_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected.replace("[", r"\[")):
        parse_yaml(text, Outer, Path("study.yaml"))


def test_a_file_larger_than_the_cap_is_refused_before_parsing(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("name: " + "x" * 2000)
    with pytest.raises(RefusedError, match="larger than the 1000 bytes"):
        load_yaml(tmp_path / "big.yaml", Outer, max_bytes=1000)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_yaml(tmp_path / "none.yaml", Outer)


def test_a_number_of_thousands_of_digits_is_a_problem_and_no_exception() -> None:
    for digits in ("9" * 5000, "1e" + "9" * 5000, "-" + "1" * 400):
        (problem,) = problems(f"name: x\nprivacy: {{epsilon: {digits}}}\n")
        assert problem.startswith("study.yaml:2: privacy.epsilon: expected a")


SLOW = {
    "brackets": "[" * 20_000,
    "braces": "{a: " * 20_000,
    "dashes": "- " * 5000,
    "indented blocks": "".join(" " * n + "a:\n" for n in range(900)),
    "a million values": "a: [" + "1," * 500_000 + "]",
    "a million lines": 'a: "' + "\n" * 1_000_000 + '"',
    "a long comment": "#" * 1_000_000 + "\na: 1",
}


@pytest.mark.parametrize("case", SLOW)
def test_no_text_below_the_cap_takes_long(case: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigurationError):
        parse_yaml(SLOW[case], Outer, Path("study.yaml"))
    assert time.process_time() - began < 2
