"""Messages that are damaged at random, as fuzzers damage them."""

import random

ODD = (b"", b"\x00", b"\xff", b"\xc0", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
       b"\xc6\xff\xff\xff\xff", b"|O", b"<f8", b"<c8", b"NaN", b"-1", b"\x91" * 2000,
       b"1e999", b"null", b"[[[[", b'"', b"\\ud800", b"{}", b"__ndarray__",
       b"__numpy__", b"image", b"encoded", b"9" * 30)  # fmt: skip
"""What is put in: lengths that promise gigabytes, odd types, deep lists, the formats' own names."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four pieces changed, cut out, put in, doubled or swapped, or with its end cut off."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 8, 40)))
        piece, kind = data[start:end], rng.randrange(6)
        new = {0: bytes(rng.randrange(256) for _ in piece), 1: b"", 2: rng.choice(ODD), 3: 2 * piece,
               4: piece[::-1], 5: None}[kind]  # fmt: skip
        data = data[:start] if new is None else data[:start] + new + data[end:]
    return data
