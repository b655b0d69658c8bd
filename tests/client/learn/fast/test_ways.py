"""The exact ways to a convolution's weight gradients, how one is chosen, and where it is kept."""

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from client.learn.fast import layers, ways
from client.learn.fast.backends import Execution, PatientGradients
from client.learn.fast.layer_rules import LayerRules
from client.learn.fast.ways import FILE_CAP_BYTES, WAYS, Attempts, Choices, Way
from client.learn.patient_gradients import Batch, Parameters, by_backward

torch.set_num_threads(1)
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "halving": (lambda: nn.Conv2d(2, 6, 4, 2, 1), (3, 2, 8, 8)),
    "one item": (lambda: nn.Conv2d(2, 6, 4, 2, 1), (1, 2, 8, 8)),
    "thin output": (lambda: nn.Conv2d(6, 2, 3, padding=1), (2, 6, 5, 6)),
    "one place": (lambda: nn.Conv2d(3, 5, 1), (2, 3, 4, 4)),
    "odd settings": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (2, 2, 9, 8),
    ),
}


def squares(module: nn.Module) -> Callable[[Parameters, Batch], Tensor]:
    return lambda weights, patient: functional_call(module, weights, (patient[0],)).square().sum()


def take(monkeypatch: pytest.MonkeyPatch, of: Callable[[str], Way]) -> None:
    """Let a rule choose the way of each shape."""
    chosen = Choices()
    monkeypatch.setattr(chosen, "of", lambda shapes, of_all: of(shapes))
    monkeypatch.setattr(layers, "CHOICES", chosen)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_every_way_gives_the_rows_of_a_plain_backward_pass(
    case: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    take(monkeypatch, lambda shapes: way)
    make, shape = CONVOLUTIONS[case]
    module = make()
    parameters = dict(module.named_parameters())
    rules = LayerRules(squares(module), parameters)
    for scale in (1.0, 0.3):  # twice, since buffers are used again
        batch = (scale * torch.randn(5, *shape),)
        expected = by_backward(squares(module), parameters, batch)
        found = torch.stack([rules.natural(row) for row in rules(batch)])
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("padded_last", [True, False])
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_a_weight_that_is_used_at_two_sizes_adds_up_in_any_two_ways(
    first: Way, second: Way, padded_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    order = itertools.cycle([first, second])
    take(monkeypatch, lambda shapes: next(order))
    parameters = {"w": torch.randn(2, 4, 3, 3)}

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        # the output is unfolded of the padded one, the input of the other
        both = [{"stride": 2}, {"padding": 1}]
        if not padded_last:
            both.reverse()
        total = torch.zeros(())
        for settings in both:
            y = nn.functional.conv2d(patient[0], weights["w"], **settings)  # type: ignore[call-overload]
            total = total + y.square().sum()
        return total

    batch = (torch.randn(3, 2, 4, 7, 7),)
    rules = LayerRules(loss, parameters)
    found = torch.stack([rules.natural(row) for row in rules(batch)])
    expected = by_backward(loss, parameters, batch)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


order: list[Way] = []


def attempts() -> Attempts:
    """Attempts that only say that they were made: see `clock`."""
    return {way: functools.partial(order.append, way) for way in WAYS}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[Way, float]:
    """Seconds that each way seems to take."""
    seconds: dict[Way, float] = dict.fromkeys(WAYS, 5.0)
    now = 0.0
    order.clear()

    def read() -> float:
        nonlocal now
        now += sum(seconds[way] for way in order)
        order.clear()
        return now

    monkeypatch.setattr(ways.time, "perf_counter", read)
    return seconds


@pytest.mark.parametrize("fast", WAYS)
def test_the_fastest_way_is_taken_and_kept(
    fast: Way, clock: dict[Way, float], tmp_path: Path
) -> None:
    clock[fast] = 1.0
    choices = Choices()
    choices.keep_in(tmp_path / "ways.json")
    with choices.trials():
        assert choices.of("a shape", attempts) == fast
    kept = json.loads((tmp_path / "ways.json").read_text())
    assert list(kept.values()) == [fast]
    (key,) = kept
    assert torch.__version__ in key
    assert key.endswith("a shape")

    # another process: what is kept is taken, and nothing is tried
    other = Choices()
    other.keep_in(tmp_path / "ways.json")
    with other.trials():
        assert other.of("a shape", lambda: pytest.fail("tried again")) == fast


def test_a_way_that_is_hardly_faster_than_the_first_is_not_taken(clock: dict[Way, float]) -> None:
    clock.update({"products": 10.0, "one by one": 9.5, "grouped": 10.0})
    assert ways.fastest(attempts()) == "products"
    clock["one by one"] = 9.0
    assert ways.fastest(attempts()) == "one by one"


def test_outside_of_trials_or_without_a_file_nothing_is_tried(
    clock: dict[Way, float], tmp_path: Path
) -> None:
    def never() -> Attempts:
        pytest.fail("tried")

    choices = Choices()
    with choices.trials():
        assert choices.of("a shape", never) == WAYS[0]
    choices.keep_in(tmp_path / "ways.json")
    assert choices.of("a shape", never) == WAYS[0]
    clock["grouped"] = 1.0
    with choices.trials():
        choices.of("a shape", attempts)
    assert choices.of("a shape", never) == "grouped"
    assert choices.of("another", never) == WAYS[0]


def test_a_choice_of_another_machine_is_not_taken(
    clock: dict[Way, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: tuple[tuple[int, Way], ...] = ((1, "grouped"), (2, "one by one"))
    for threads, fast in cases:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        clock.update(dict.fromkeys(WAYS, 5.0))
        clock[fast] = 1.0
        choices = Choices()
        choices.keep_in(tmp_path / "ways.json")
        with choices.trials():
            assert choices.of("a shape", attempts) == fast
    assert len(json.loads((tmp_path / "ways.json").read_text())) == 2


DAMAGED = {
    "cut short": b'{"a": "grou',
    "no text": b"\xff\x00",
    "another form": b'["grouped"]',
    "an unknown way": b'{"KEY": "os.system"}',
    "a list for a way": b'{"KEY": ["grouped"]}',
    "too large": b'{"KEY": "grouped", "' + FILE_CAP_BYTES * b"x" + b'": "grouped"}',
    "too deep": 100_000 * b"[",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_counts_as_empty(case: str, clock: dict[Way, float], tmp_path: Path) -> None:
    file = tmp_path / "ways.json"
    key = f"{ways._machine()}; a shape"
    file.write_bytes(DAMAGED[case].replace(b"KEY", key.encode()))
    clock["one by one"] = 1.0
    choices = Choices()
    choices.keep_in(file)
    with choices.trials():
        assert choices.of("a shape", attempts) == "one by one"
    assert json.loads(file.read_text())[key] == "one by one"


def test_a_folder_that_is_not_there_stops_no_training(
    clock: dict[Way, float], tmp_path: Path
) -> None:
    clock["grouped"] = 1.0
    file = tmp_path / "file"
    file.touch()
    choices = Choices()
    choices.keep_in(file / "ways.json")
    with choices.trials():
        assert choices.of("a shape", attempts) == "grouped"


def test_no_patients_value_is_tried_or_changes_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of NaN: each attempt sees finite numbers, and all ways are tried once a layer."""
    tried: list[Way] = []
    honest = layers._Conv2d._add_by

    def spy(self: layers._Conv2d, way: Way, sink: object, x: Tensor, gy: Tensor, c: int) -> None:
        assert bool(torch.isfinite(x).all())
        assert bool(torch.isfinite(gy).all())
        tried.append(way)
        honest(self, way, sink, x, gy, c)  # type: ignore[arg-type]

    choices = Choices()
    choices.keep_in(tmp_path / "ways.json")
    monkeypatch.setattr(layers, "CHOICES", choices)
    monkeypatch.setattr("client.learn.fast.backends.CHOICES", choices)
    monkeypatch.setattr(layers._Conv2d, "_add_by", spy)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 4, 2, 1), nn.LeakyReLU(), nn.Conv2d(4, 8, 4, 2, 1))
    gradients = PatientGradients(
        dict(module.named_parameters()), squares(module), Execution("layers", 4), 1.0, 4.0, 1
    )
    gradients.prepare((torch.full((1, 2, 2, 8, 8), float("nan")),))
    assert set(tried) == set(WAYS)
    kept = json.loads((tmp_path / "ways.json").read_text())
    assert len(kept) == 2

    # the steps that follow try nothing
    monkeypatch.setattr(ways, "fastest", lambda attempts: pytest.fail("tried"))
    monkeypatch.setattr(layers._Conv2d, "_add_by", honest)
    rows = gradients.rows((torch.randn(3, 2, 2, 8, 8),))
    assert bool(torch.isfinite(rows).all())
