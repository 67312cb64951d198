"""An independent reference of the arithmetic: plain Python integers and fractions, one at a time.

Written from the mathematics (truncation of an exact quotient, rounding of an exact fraction), not
from the shifts that the package uses. Slow on purpose; imports nothing of the package.
"""

from fractions import Fraction

Pair = tuple[int, int]
Matrix = list[list[int]]

INT32 = (-(1 << 31), (1 << 31) - 1)
INT48 = (-(1 << 47), (1 << 47) - 1)


def value(scale: Pair) -> Fraction:
    m, e = scale
    return Fraction(m) * Fraction(2) ** (e - 15)


def truncate(x: Fraction) -> Pair:
    """The largest 16-bit Scale not above x, e limited to its range."""
    if x == 0:
        return (0, 0)
    e = x.numerator.bit_length() - x.denominator.bit_length()
    e -= Fraction(2) ** e > x
    assert Fraction(2) ** e <= x < Fraction(2) ** (e + 1)
    return (int(x / Fraction(2) ** (e - 15)), min(max(e, -512), 511))


def multiply(a: Pair, b: Pair) -> Pair:
    return truncate(value(a) * value(b))


def divide(a: Pair, b: Pair) -> Pair:
    return truncate(value(a) / value(b)) if a[0] and b[0] else (0, 0)


def clamp(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def scaled(v: int, r: Pair, word: int | None = None) -> int:
    """v * r rounded, not saturated."""
    exact, shift = v * value(r), 15 - r[1]
    if exact == 0 or shift > 63:
        return 0
    if shift <= 0:
        assert exact.denominator == 1
        return int(exact)
    if word is None:
        return round(exact)  # Fraction rounds half to even
    # The word is a number in [0, 1) of 32 bits; only its `shift` leading ones take part.
    kept = Fraction(word, 1 << 32) if shift >= 32 else Fraction(word >> (32 - shift), 1 << shift)
    return (exact + kept).__floor__()


def word_at(seed: int, step: int, tensor: int, stream: int, row: int, col: int) -> int:
    mask = (1 << 32) - 1
    x = seed + step * 0xC2B2AE35 + tensor * 0x27D4EB2F + stream * 0x165667B1
    x = (x + row * 0x9E3779B9 + col * 0x85EBCA6B) & mask
    x ^= x >> 16
    x = (x * 1025) & mask
    x ^= x >> 6
    x = (x * 9) & mask
    x ^= x >> 11
    x = (x * 32769) & mask
    return x ^ (x >> 16)


def product(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(p * q for p, q in zip(row, col, strict=True)) for col in zip(*b, strict=True)]
            for row in a]  # fmt: skip


def transpose(a: Matrix) -> Matrix:
    return [list(row) for row in zip(*a, strict=True)]


def quantized(
    acc: Matrix, scale: Pair, bits: int, record: int = 0, words: Matrix | None = None
) -> tuple[Matrix, Pair, int, bool]:
    """(q, scale, next record, clipped)."""
    maximum = max(abs(v) for row in acc for v in row)
    limit = 2 ** (bits - 1) - 1
    basis = record or maximum
    if basis == 0:
        return [[0] * len(row) for row in acc], (0, 0), 0, False
    r = divide(truncate(Fraction(limit)), truncate(Fraction(basis)))
    free = [
        [scaled(v, r, words[i][j] if words else None) for j, v in enumerate(row)]
        for i, row in enumerate(acc)
    ]
    q = [[clamp(v, -limit, limit) for v in row] for row in free]
    return q, divide(scale, r), maximum or record, q != free
