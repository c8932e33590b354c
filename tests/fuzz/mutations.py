"""Damage to valid bytes: cut, flipped, spliced, and with numbers, lengths and depths that cannot be."""

import re
from collections.abc import Callable
from random import Random

_LENGTHS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_NUMBERS = (
    b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"null", b"1" * 400, b"9" * 5000, b"1e-320",
    b"99999999999999999999", b"true", b'"x"', b"[]", b"{}", b"0.5", b"-0.0",
)  # fmt: skip
_NESTS = (b"[", b'{"a":', b"(", b"a.", b"{a=", b"\x80(")
_TEXTS = (
    b"\0", b"\x1b[2J", b"../../x", b"/etc/passwd", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"=1+1", b"\r\n",
    b"<script>", "\u202e".encode(), b"..", b"$(id)", b"%s%n", b"a" * 3000,
)  # fmt: skip

Mutation = Callable[[bytes, Random], bytes]


def cut(content: bytes, random: Random) -> bytes:
    return content[: random.randint(0, len(content))]


def flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def length_replaced(content: bytes, random: Random) -> bytes:
    size = random.choice((1, 2, 4, 8))
    value = (random.choice(_LENGTHS) % 256**size).to_bytes(size, random.choice(("big", "little")))
    place = random.randint(0, min(len(content), random.choice((32, 600, 10**9))))
    return content[:place] + value + content[place + size :]


def number_replaced(content: bytes, random: Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content
    match = random.choice(found)
    return content[: match.start()] + random.choice(_NUMBERS) + content[match.end() :]


def text_inserted(content: bytes, random: Random) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + random.choice(_TEXTS) + content[place:]


def text_replaced(content: bytes, random: Random) -> bytes:
    found = list(re.finditer(rb'(?<=")[^"\n]+(?=")', content))
    if not found:
        return content
    match = random.choice(found)
    return content[: match.start()] + random.choice(_TEXTS) + content[match.end() :]


def nested(content: bytes, random: Random) -> bytes:
    place = random.choice((0, random.randint(0, len(content))))
    values = list(re.finditer(rb"(?<=[:=] )[^,}\n]+", content))
    end = place
    if values and random.random() < 0.5:
        place, end = random.choice(values).span()
    return content[:place] + random.choice(_NESTS) * random.choice((50, 1000, 20_000)) + content[end:]


def removed(content: bytes, random: Random) -> bytes:
    start = random.randint(0, len(content))
    return content[:start] + content[start + random.choice((1, 4, 30, 500)) :]


def repeated(content: bytes, random: Random) -> bytes:
    start = random.randint(0, len(content))
    piece = content[start : start + random.choice((1, 8, 100, 512))]
    return content[:start] + piece * random.choice((2, 3, 50)) + content[start:]


def swapped(content: bytes, random: Random) -> bytes:
    first, second = sorted(random.randint(0, len(content)) for _ in range(2))
    size = random.choice((4, 16, 512))
    return content[:first] + content[second : second + size] + content[first + size :]


MUTATIONS: tuple[Mutation, ...] = (
    cut, flipped, length_replaced, number_replaced, text_inserted, text_replaced, nested, removed, repeated,
    swapped,
)  # fmt: skip


def damaged(examples: list[bytes], seed: int) -> bytes:
    """One of the examples after one to four kinds of damage, or spliced with another."""
    random = Random(seed)
    content = random.choice(examples)
    if random.random() < 0.1:
        other = random.choice(examples)
        content = content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(MUTATIONS)(content, random)
    return content
