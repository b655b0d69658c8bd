"""Theorems about the noise source."""

import math
import os
import random
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.privacy import noise as noise_module
from common.privacy.noise import (
    GAUSSIAN_BLOCK,
    KEYED_BLOCK,
    LATTICE,
    NoiseSource,
    SeededNoiseSource,
    laplace_thresholds,
    radius_of,
)


def test_torch_manual_seed_changes_no_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        draws.append(NoiseSource().gaussian_lattice(1000, 1.0))
    assert not np.array_equal(draws[0], draws[1])


def test_no_argument_can_seed_the_production_source() -> None:
    with pytest.raises(TypeError):
        NoiseSource(7)  # type: ignore[call-arg]
    assert NoiseSource.private
    assert not SeededNoiseSource.private
    assert not isinstance(SeededNoiseSource(1), NoiseSource)


def test_a_forked_child_draws_other_noise_than_its_parent() -> None:
    source = NoiseSource()
    source.uniform_u64(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.uniform_u64(64).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 512), dtype=np.uint64)
    ours = source.uniform_u64(64)
    assert not np.intersect1d(theirs, ours).size


def test_no_two_processes_forks_or_restarts_draw_the_same_noise() -> None:
    """Parent, child, grandchild and fresh starts.

    One common word of 64 bits would have probability 1e-13.
    """
    source = NoiseSource()
    reader, writer = os.pipe()
    drawn = [source.uniform_u64(512)]
    child = os.fork()
    if child == 0:
        os.write(writer, source.uniform_u64(512).tobytes())
        grandchild = os.fork()
        if grandchild == 0:
            os.write(writer, source.uniform_u64(512).tobytes())
            os._exit(0)
        os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    drawn += [np.frombuffer(os.read(reader, 8192), dtype=np.uint64), source.uniform_u64(512)]
    os.close(reader)
    assert len(drawn[1]) == 1024
    program = (
        "import sys; from common.privacy.noise import NoiseSource;"
        "sys.stdout.write(NoiseSource().uniform_u64(512).tobytes().hex())"
    )
    for _ in range(2):  # the same command twice: a restart
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        drawn.append(np.frombuffer(bytes.fromhex(done.stdout), dtype=np.uint64))
    drawn += [NoiseSource().uniform_u64(512) for _ in range(2)]
    words = np.concatenate(drawn)
    assert len(np.unique(words)) == len(words) == 512 * 8


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_draws_still_draws_other_noise() -> None:
    """The private step draws in a thread: a child forked meanwhile is keyed anew."""
    source, stop = NoiseSource(), threading.Event()
    drawing = threading.Thread(
        target=lambda: [source.uniform_u64(64) for _ in iter(stop.is_set, True)]
    )
    drawing.start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.uniform_u64(64).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    stop.set()
    drawing.join()
    theirs = np.frombuffer(os.read(reader, 512), dtype=np.uint64)
    assert len(np.unique(np.concatenate([theirs, source.uniform_u64(4096)]))) == 64 + 4096


@pytest.mark.parametrize(
    "n",
    [0, 1, 2, 3, GAUSSIAN_BLOCK - 1, GAUSSIAN_BLOCK, GAUSSIAN_BLOCK + 1, 2 * GAUSSIAN_BLOCK + 3],
)
def test_every_length_of_gaussian_noise_is_full_of_fresh_values(n: int) -> None:
    noise = NoiseSource().gaussian_lattice(n, 8.0)
    assert noise.shape == (n,)
    assert len(np.unique(noise)) >= n - max(3, n**2 // 2**27)  # birthdays among about 2^28 values


def test_no_word_of_the_key_stream_is_used_twice() -> None:
    """One long draw equals the same words drawn in pieces, across the cipher's blocks."""
    whole = SeededNoiseSource(1).uniform_u64(100_000)
    pieces = SeededNoiseSource(1)
    assert np.array_equal(
        whole, np.concatenate([pieces.uniform_u64(n) for n in (1, 32_767, 32_768, 7, 34_457)])
    )
    assert len(np.unique(whole)) == len(whole)


def test_the_radius_reaches_beyond_nine_sigma() -> None:
    radius = radius_of(np.array([0, 2**63, 2**64 - 1], dtype=np.uint64))
    assert 9.4 < radius[0] < 9.6
    assert radius[1] == pytest.approx(math.sqrt(2 * math.log(2)))
    assert radius[2] == pytest.approx(0.0, abs=1e-9)


def test_gaussian_noise_lies_on_the_lattice_and_follows_the_normal_law() -> None:
    n, sigma = 400_000, 1.3
    noise = NoiseSource().gaussian_lattice(n, sigma)
    assert noise.dtype == np.int64
    ordered = np.sort(noise) / (sigma * LATTICE)
    cdf = 0.5 * (1 + torch.erf(torch.from_numpy(ordered) / math.sqrt(2))).numpy()
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert distance * math.sqrt(n) < 2.6  # Kolmogorov–Smirnov: exceeded with probability 3e-6
    halves = noise[: n // 2], noise[n // 2 :]
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / math.sqrt(n / 2)


@pytest.mark.parametrize("scale", [0.4, 3.0, 50.0])
def test_discrete_laplace_follows_its_mass_function(scale: float) -> None:
    n = 300_000
    noise = NoiseSource().discrete_laplace(n, scale)
    ratio = math.exp(-1 / scale)
    values = np.arange(-int(4 * scale) - 1, int(4 * scale) + 2)
    expected = n * (1 - ratio) / (1 + ratio) * ratio ** np.abs(values)
    counts = np.array([(noise == v).sum() for v in values])
    kept = expected > 20
    chi = ((counts - expected) ** 2 / expected)[kept].sum()
    freedom = kept.sum()
    assert chi < freedom + 6 * math.sqrt(2 * freedom)


def test_laplace_thresholds_are_exact_to_192_bits() -> None:
    """Against a rational enclosure of exp by its Taylor series, in exact fractions."""
    scale = 3.0
    words = laplace_thresholds(scale)
    for bit in range(4):
        x = Fraction(2**bit) / Fraction(scale)
        term = power = Fraction(1)
        for order in range(1, 90):
            term = term * x / order
            power += term
        exact = Fraction(2**192) / (1 + power)
        got = (words[bit][0] << 128) + (words[bit][1] << 64) + words[bit][2]
        assert abs(exact - got) < 2


@pytest.mark.parametrize("scale", [0.01, 0.4, 3.0, 5.0, 1024.0, 1e9, 2.0**50])
def test_a_bit_that_laplace_noise_leaves_out_has_a_bias_below_2_to_the_minus_192(
    scale: float,
) -> None:
    words = laplace_thresholds(scale)
    assert Fraction(2 ** len(words)) / Fraction(scale) > Fraction(133)
    assert len(words) == 0 or Fraction(2 ** (len(words) - 1)) / Fraction(scale) < Fraction(134), (
        "and none more than that"
    )


def test_a_tie_on_the_first_word_is_settled_by_the_next_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, _ = laplace_thresholds(1000.0)[0]
    for next_word, below in ((second - 1, 1), (second + 1, 0)):
        words = iter([first, next_word])
        source = SeededNoiseSource(0)
        monkeypatch.setattr(
            source, "uniform_u64", lambda n, w=words: np.array([next(w)] * n, dtype=np.uint64)
        )
        assert source._below((first, second, 0), 1).tolist() == [bool(below)]


def scripted(*draws: list[int]) -> SeededNoiseSource:
    """A source whose draws are these, one list a draw; one draw more is an error."""
    source, words = SeededNoiseSource(0), iter(draws)

    def uniform_u64(n: int) -> np.ndarray:
        drawn = next(words)
        assert len(drawn) == n
        return np.array(drawn, dtype=np.uint64)

    source.uniform_u64 = uniform_u64  # type: ignore[method-assign]
    return source


def test_a_tie_on_two_words_is_settled_by_the_third_and_on_all_three_it_is_not_below() -> None:
    threshold = (7, 5, 3)
    for last, below in ((2, True), (3, False), (4, False)):
        assert scripted([7], [5], [last])._below(threshold, 1).tolist() == [below]


def test_a_tie_changes_no_other_draw() -> None:
    """Further words are drawn for the two ties alone, not for the words beside them."""
    source = scripted([6, 7, 8, 7, 0], [4, 6])
    assert source._below((7, 5, 3), 5).tolist() == [True, True, False, False, True]


def test_the_two_sides_of_laplace_noise_are_drawn_apart() -> None:
    noise = NoiseSource().discrete_laplace(40_000, 50.0).astype(np.float64)
    for other in (noise[::-1], np.roll(noise, 1), np.roll(noise, 20_000)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 6 / math.sqrt(len(noise))


def test_gaussian_noise_is_rounded_to_the_nearest_lattice_point() -> None:
    """At a deviation of two steps the masses tell nearest from downward and from toward zero."""
    n, steps = 40_000, 2.0
    noise = NoiseSource().gaussian_lattice(n, steps / LATTICE)
    for value in range(-3, 4):
        low, high = (0.5 * math.erf((value + side) / steps / math.sqrt(2)) for side in (-0.5, 0.5))
        mass = high - low
        assert abs((noise == value).mean() - mass) < 6 * math.sqrt(mass * (1 - mass) / n)


def test_every_byte_of_key_and_nonce_comes_from_the_operating_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flipped bit in any entropy byte changes the stream; 32 bytes make a key of 256 bits."""

    def first_word(size: int, place: int) -> int:
        def urandom(n: int) -> bytes:
            assert n in (32, 16)
            given = bytearray(n)
            if n == size:
                given[place] ^= 1
            return bytes(given)

        monkeypatch.setattr(os, "urandom", urandom)
        return int(NoiseSource().uniform_u64(1)[0])

    words = [first_word(size, place) for size in (32, 16) for place in range(size)] + [
        first_word(0, 0)
    ]
    assert len(set(words)) == 49


def test_the_draws_of_laplace_noise_are_fixed_work() -> None:
    drawn: list[int] = []

    class Counting:
        """Counts the words that a draw asks for."""

        def __init__(self) -> None:
            self.inner = NoiseSource()

        def __call__(self, n: int) -> np.ndarray:
            drawn.append(n)
            return self.inner.uniform_u64(n)

    for _ in range(20):
        source = SeededNoiseSource(0)
        source.uniform_u64 = Counting()  # type: ignore[method-assign]
        source.discrete_laplace(100, 1024.0)
    assert set(drawn) == {200}
    assert len(drawn) == 20 * len(laplace_thresholds(1024.0))


def test_a_coin_of_bias_one_always_falls_heads_and_the_bias_is_an_integer_threshold() -> None:
    source = NoiseSource()
    assert source.bernoulli(1.0, 10_000).all()
    assert not source.bernoulli(2.0**-64, 10_000).any()
    assert abs(source.bernoulli(0.064, 100_000).mean() - 0.064) < 0.005


@pytest.mark.parametrize(
    ("q", "threshold"), [(0.1, int(Fraction(0.1) * 2**64)), (1.5 * 2.0**-64, 1), (0.5, 2**63)]
)
def test_a_coin_falls_heads_for_exactly_the_words_below_its_threshold(
    q: float, threshold: int
) -> None:
    around = [0, threshold - 1, threshold, threshold + 1, 2**64 - 1]
    assert scripted(around).bernoulli(q, 5).tolist() == [True, True, False, False, False]


def test_a_width_that_would_leave_int64_or_float64_is_refused() -> None:
    source = NoiseSource()
    source.gaussian_lattice(4, 2.0**24), source.discrete_laplace(4, 2.0**50)
    with pytest.raises(ConfigurationError, match="2\\^24"):
        source.gaussian_lattice(4, 2.0**24 * (1 + 2**-52))
    with pytest.raises(ConfigurationError, match="2\\^50"):
        source.discrete_laplace(4, 2.0**50 * (1 + 2**-52))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_distribution_without_a_proper_width_is_refused(bad: float) -> None:
    source = NoiseSource()
    for draw in (source.gaussian_lattice, source.discrete_laplace):
        with pytest.raises(ConfigurationError):
            draw(4, bad)
    with pytest.raises(ConfigurationError):
        source.bernoulli(bad, 4)


def test_seeded_noise_repeats_itself() -> None:
    a, b = (SeededNoiseSource(5).gaussian_lattice(9, 1.0) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, SeededNoiseSource(6).gaussian_lattice(9, 1.0))


LONG = (KEYED_BLOCK - 1, KEYED_BLOCK, KEYED_BLOCK + 1, 3 * KEYED_BLOCK, 3 * KEYED_BLOCK + 7)


@pytest.mark.parametrize("n", LONG)
def test_the_number_of_threads_changes_no_value(n: int) -> None:
    drawn = [SeededNoiseSource(4, threads=threads).gaussian_lattice(n, 2.0) for threads in (1, 3)]
    assert drawn[0].shape == (n,)
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_two_blocks_of_a_long_vector_share_noise(threads: int) -> None:
    """Two blocks of one key stream would be equal value by value."""
    source = NoiseSource(threads=threads)
    noise = np.concatenate([source.gaussian_lattice(3 * KEYED_BLOCK, 8.0) for _ in range(2)])
    blocks = noise.reshape(6, KEYED_BLOCK)
    for i in range(6):
        for j in range(i):
            assert np.mean(blocks[i] == blocks[j]) < 1e-3
            assert abs(np.corrcoef(blocks[i], blocks[j])[0, 1]) < 6 / math.sqrt(KEYED_BLOCK)


def test_a_long_vector_follows_the_normal_law_in_every_block() -> None:
    n, sigma = 4 * KEYED_BLOCK, 1.3
    for noise in NoiseSource(threads=2).gaussian_lattice(n, sigma).reshape(4, KEYED_BLOCK):
        ordered = np.sort(noise) / (sigma * LATTICE)
        cdf = 0.5 * (1 + torch.erf(torch.from_numpy(ordered) / math.sqrt(2))).numpy()
        distance = np.abs(cdf - (np.arange(KEYED_BLOCK) + 0.5) / KEYED_BLOCK).max()
        assert distance * math.sqrt(KEYED_BLOCK) < 2.8  # exceeded with probability 3e-7


def test_an_error_in_a_drawing_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_module, "_fill", lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        NoiseSource(threads=2).gaussian_lattice(2 * KEYED_BLOCK, 1.0)


def test_the_gaussian_is_that_of_box_and_muller_to_a_lattice_step() -> None:
    """Computed by one tangent; here by the cosine and the sine of the same words."""
    n, sigma = 2 * GAUSSIAN_BLOCK, 3.0
    drawn = SeededNoiseSource(9).gaussian_lattice(n, sigma).reshape(2, 2, -1)
    words = SeededNoiseSource(9).uniform_u64(n).reshape(2, 2, -1)
    for block, (radii, angles) in zip(drawn, words, strict=True):
        radius = radius_of(radii) * sigma * LATTICE
        angle = (angles >> np.uint64(11)) * (2.0 * math.pi * 2.0**-53)
        assert np.abs(block[0] - np.cos(angle) * radius).max() < 0.51
        assert np.abs(block[1] - np.sin(angle) * radius).max() < 0.51
