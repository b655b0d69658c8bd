"""Makes inputs from seeds: bytes that are damaged, and texts whose tokens are exchanged.

In: seeds, a `random.Random`. Out: bytes. Guarantees: the same random numbers give the same input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

Maker = Callable[[Random], bytes]

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0x80000000)
EDGES += (0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WIDTHS = (1, 2, 4, 8)
INPUT_CAP = 1 << 18
HEAVY_SHARE = 0.004  # of the exchanged tokens
DAMAGE_SHARE = 0.15  # of the texts, damaged as bytes besides

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.+-]+|\s+|.', re.DOTALL)

# what a reader of text meets and its writer never wrote
ODD_TOKENS = (
    *(b'""', b"null", b"true", b"false", b"~", b"-", b"- ", b": ", b":", b",", b"|\n", b">-\n"),
    *(b"{}", b"[]", b"[[]]", b"{", b"}", b"[", b"]", b'"', b"'", b"\\", b"#", b"%", b"&a ", b"*a"),
    *(b"0", b"-0", b"-1", b"1", b"0.5", b"1e5", b"1e400", b"-1e400", b"1e-400", b"NaN"),
    *(b"Infinity", b"-Infinity", b"0x10", b"0o7", b"1_000", b"00", b"1.", b".5", b"9" * 25),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"4294967296"),
    *(b'"\\ud800"', b'"\\u0000"', b'"\\udcff\\udcff"', b"\xff", b"\xed\xa0\x80", b"\xc3\xa9"),
    *(b"\x00", b"\r", b"\n", b"\r\n", b"\t", b"\x0b", b"\x1c", b"\x85", b"\xe2\x80\xa8"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xd9\xa1\xd9\xa2", b"\xc2\xb2", b"../../x", b"/dev/zero"),
    *(b"<<: *a", b"!!python/object:os.system ", b"!!int ", b"---\n", b"...\n", b"? ", b"%YAML 1\n"),
    *(b'{"a":1,"a":2}', b"[1,2,3]", b'{"a":{"b":[null]}}', b"2026-11-21", b"1:30", b"a" * 300),
)
# texts that cost much: nesting, long numbers
HEAVY_TOKENS = (
    b"9" * 5000,
    b"[" * 3000,
    b"[" * 20_000,
    b'{"a":' * 3000,
    b"[" * 500 + b"]" * 500,
    b'"' + b"a" * 140_000 + b'"',
    b"- " * 2000,
    b"1e" + b"9" * 5000,
    b"," * 20_000,
)

VALUE = re.compile(rb'("(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null)')
JSON_VALUES = (
    *(b"null", b"true", b"false", b"0", b"-0", b"-1", b"1", b"2", b"3", b"64", b"1.5", b"0.1"),
    *(b"1e5", b"1e400", b"-1e400", b"1e-400", b"NaN", b"Infinity", b"-Infinity", b"9" * 25),
    *(b"4294967296", b"9223372036854775808", b"18446744073709551616", b"1e308", b"1e-308"),
    *(b"[]", b"{}", b"[[]]", b"[1]", b'["a"]', b'{"a":1}', b'{"a":{"b":[null]}}', b"[null,1]"),
    *(b'""', b'"a"', b'"A"', b'"0"', b'"1"', b'"' + b"0" * 64 + b'"', b'"NaN"', b'" "'),
    *(b'"\\u0000"', b'"\\ud800"', b'"\xc3\xa9"', b'"\\n"', b'"../x"', b'"' + b"a" * 300 + b'"'),
)
HEAVY_VALUES = (b"9" * 5000, b"[" * 500 + b"]" * 500, b'"' + b"a" * 140_000 + b'"')


def damage(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return data with one to four places changed, cut, doubled or joined with another seed's."""
    out = bytearray(data)
    for _ in range(1 + int(rng.random() ** 2 * 4)):
        _damage_once(rng, out, others)
    return bytes(out[:INPUT_CAP])


def _damage_once(rng: Random, out: bytearray, others: Sequence[bytes]) -> None:
    """One change, in place."""
    size = len(out)
    at = int(rng.random() * (size + 1))
    length = 1 + int(rng.random() ** 3 * 64)
    kind = int(rng.random() * 10)
    if kind < 3 and size:
        out[min(at, size - 1)] ^= 1 << int(rng.random() * 8)
    elif kind < 5:
        width = WIDTHS[int(rng.random() * 4)]
        number = (EDGES[int(rng.random() * len(EDGES))] - int(rng.random() * 2)) % (1 << 8 * width)
        order = "little" if rng.random() < 0.5 else "big"
        out[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
    elif kind == 5:
        del out[at : at + length]
    elif kind == 6:
        start = int(rng.random() * (size + 1))
        out[at:at] = out[start : start + length]
    elif kind == 7:
        out[at:at] = rng.randbytes(length)
    elif kind == 8:
        del out[at:]
    elif others:
        other = others[int(rng.random() * len(others))]
        start = int(rng.random() * (len(other) + 1))
        out[at:] = other[start:]


def damaged(*seeds: bytes) -> Maker:
    """Return a maker of damaged seeds; now and then a seed as it is."""

    def make(rng: Random) -> bytes:
        seed = seeds[int(rng.random() * len(seeds))]
        if rng.random() < 0.01:
            return seed
        return damage(rng, seed, seeds)

    return make


def noise(longest: int = 64) -> Maker:
    """Return a maker of bytes without any form."""
    return lambda rng: rng.randbytes(int(rng.random() * longest))


def exchanged(*seeds: bytes, odd: Sequence[bytes] = ()) -> Maker:
    """Return a maker of texts: some tokens of a seed exchanged, doubled, lost or moved.

    `odd`: tokens that this format knows besides.
    """
    texts = [TOKEN.findall(seed) for seed in seeds]
    strange = (*ODD_TOKENS, *odd)

    def make(rng: Random) -> bytes:
        tokens = list(texts[int(rng.random() * len(texts))])
        for _ in range(1 + int(rng.random() ** 2 * 4)):
            _exchange_once(rng, tokens, texts, strange)
        text = b"".join(tokens)
        if rng.random() < DAMAGE_SHARE:
            return damage(rng, text, seeds)
        return text[:INPUT_CAP]

    return make


def _exchange_once(
    rng: Random, tokens: list[bytes], texts: Sequence[list[bytes]], strange: Sequence[bytes]
) -> None:
    """One change of the tokens, in place."""
    at = int(rng.random() * (len(tokens) + 1))
    kind = int(rng.random() * 8)
    if kind < 4:
        tokens[at : at + 1] = [_odd_token(rng, strange)]
    elif kind == 4:
        del tokens[at : at + 1 + int(rng.random() ** 2 * 8)]
    elif kind == 5:
        start = int(rng.random() * (len(tokens) + 1))
        tokens[at:at] = tokens[start : start + 1 + int(rng.random() * 12)]
    elif kind == 6:
        other = texts[int(rng.random() * len(texts))]
        start = int(rng.random() * (len(other) + 1))
        tokens[at : at + 1] = other[start : start + 1]
    else:
        tokens[at:at] = [_odd_token(rng, strange)]


def revalued(*seeds: bytes, odd: Sequence[bytes] = ()) -> Maker:
    """Return a maker of JSON texts in which some values and keys are others; still JSON."""
    texts = [parts for parts in map(VALUE.split, seeds) if len(parts) > 1]
    strange = (*JSON_VALUES, *odd)

    def make(rng: Random) -> bytes:
        parts = list(texts[int(rng.random() * len(texts))])
        for _ in range(1 + int(rng.random() ** 2 * 4)):
            # every second part is a value
            at = 2 * int(rng.random() * (len(parts) // 2)) + 1
            if rng.random() < 0.3:
                other = texts[int(rng.random() * len(texts))]
                parts[at] = other[2 * int(rng.random() * (len(other) // 2)) + 1]
            elif rng.random() < HEAVY_SHARE:
                parts[at] = HEAVY_VALUES[int(rng.random() * len(HEAVY_VALUES))]
            else:
                parts[at] = strange[int(rng.random() * len(strange))]
        return b"".join(parts)[:INPUT_CAP]

    return make


def _odd_token(rng: Random, strange: Sequence[bytes]) -> bytes:
    """A token that the writer never wrote; seldom one that costs much."""
    if rng.random() < HEAVY_SHARE:
        return HEAVY_TOKENS[int(rng.random() * len(HEAVY_TOKENS))]
    return strange[int(rng.random() * len(strange))]


def wrapped(make: Maker, wrap: Callable[[bytes], bytes]) -> Maker:
    """Return a maker whose inputs are framed once more: a right length, digest or signature."""
    return lambda rng: wrap(make(rng))


def one_of(*parts: Maker) -> Maker:
    """Return a maker of one file of several: the first byte is its number, the rest its content."""

    def make(rng: Random) -> bytes:
        number = int(rng.random() * len(parts))
        return bytes([number]) + parts[number](rng)

    return make
