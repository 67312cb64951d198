"""RandomWord: the mixing function of the random words (numerics section 7)."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RandomWord"]

WORD_BITS = 32
#: The steps in order, one stage each: x ^= x >> right, then x += x << left.
STEPS = ((16, 10), (6, 3), (11, 15))
#: The last step, x ^= x >> this, has no addition.
LAST_RIGHT = 16


class RandomWord(wiring.Component):
    """Mixes a 32-bit counter value into a random word.

    Modulo 2**32: ``x ^= x >> 16; x += x << 10; x ^= x >> 6; x += x << 3; x ^= x >> 11;
    x += x << 15; x ^= x >> 16``.

    Accepts one `x` per cycle; its word is there `LATENCY` cycles later; no back-pressure, no
    valid: the caller counts.

    Members
    -------
    x : In(32)
        Sum of the seed word and the element's row and column steps.
    word : Out(32)

    Notes
    -----
    numerics section 7. Each stage holds one adder of at most 29 bits between two exclusive ors.
    """

    #: Cycles from `x` to `word`.
    LATENCY = len(STEPS)

    x: In(WORD_BITS)
    word: Out(WORD_BITS)

    @property
    def design_key(self) -> tuple[str]:
        """All constructor parameters: there are none."""
        return ("random_word",)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = self.x
        for stage, (right, left) in enumerate(STEPS, start=1):
            folded = Signal(WORD_BITS, name=f"folded_{stage}")
            mixed = Signal(WORD_BITS, name=f"mixed_{stage}")
            register = Signal(WORD_BITS, name=f"word_{stage}", reset_less=True)
            m.d.comb += [
                folded.eq(word ^ (word >> right)),
                # The lowest bits have nothing to add: the adder is as narrow as it can be.
                mixed[:left].eq(folded[:left]),
                mixed[left:].eq(folded[left:] + folded[:-left]),
            ]
            if stage < len(STEPS):
                m.d.sync += register.eq(mixed)
            else:
                m.d.sync += register.eq(mixed ^ (mixed >> LAST_RIGHT))
            word = register
        m.d.comb += self.word.eq(word)
        return m
