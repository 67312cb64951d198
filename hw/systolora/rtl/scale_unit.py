"""ScaleUnit: arithmetic on Scales (numerics section 2)."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.types import ScaleLayout

__all__ = ["Operation", "ScaleRequest", "ScaleResponse", "ScaleUnit"]

INTEGER_BITS = 48
MANTISSA_BITS = 16
#: FROM_INT moves an integer up by this many bits at once while so many leading ones are zero.
STRIDE = 8
EXPONENT_MIN, EXPONENT_MAX = -512, 511


class Operation(enum.Enum, shape=2):
    """What a `ScaleUnit` does."""

    FROM_INT = 0  # from_int(n)
    MUL = 1  # mul(a, b)
    DIV = 2  # div(a, b)


class ScaleRequest(data.Struct):
    """One operation: FROM_INT takes `n`, the others `a` and `b`."""

    op: Operation
    a: ScaleLayout
    b: ScaleLayout
    n: INTEGER_BITS


class ScaleResponse(data.Struct):
    """The result of one operation; `range`: its exponent left -512..511 and was saturated."""

    scale: ScaleLayout
    range: 1


class ScaleUnit(wiring.Component):
    """Computes from_int, mul and div on Scales, one operation at a time.

    ``FROM_INT: n``, ``MUL: a * b``, ``DIV: a / b``, all truncated to 16 bits of mantissa; zero if
    `n` or either operand is zero (so x / 0 is zero too). The exponent saturates to -512..511, and
    the mantissa is then still that of the exact result.

    A request is taken when none is in work. From the cycle that takes it to the first cycle with
    `response.valid` it is

    - FROM_INT: 1 + z // 8 + z % 8 cycles for z leading zeros in the 48 bits of `n`, 1 if n = 0
    - MUL: 2 cycles, 3 if the product of the mantissas is below 2**31
    - DIV: 17 cycles, 18 if a.m < b.m; 1 if either is zero

    and so at most `LATENCY`. The response is held until it is taken; the next request is taken in
    the cycle after that, at the earliest.

    Members
    -------
    request : In(stream.Signature(ScaleRequest))
        Mantissas are at least 2**15, or 0 in a Scale that is zero.
    response : Out(stream.Signature(ScaleResponse))

    Notes
    -----
    numerics section 2. All three operations end alike: `bits` moves up until its top bit is set,
    and the exponent counts down. For FROM_INT it starts as the integer, for MUL as the product
    (one step at most), for DIV as zero, with the bits of the quotient of a restoring division
    coming in below its top 16 bits: 17 of them, or 16 if the first is set.
    """

    #: Cycles from a request to its response, at most.
    LATENCY = 18

    request: In(stream.Signature(ScaleRequest))
    response: Out(stream.Signature(ScaleResponse))

    @property
    def design_key(self) -> tuple[str]:
        """All constructor parameters: there are none."""
        return ("scale_unit",)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request = self.request.payload
        response = self.response.payload

        bits = Signal(INTEGER_BITS, reset_less=True)
        mantissa_at = INTEGER_BITS - MANTISSA_BITS
        # Ends in -1024..1023. DIV may start above, at ae - be + 16; that wraps there and back.
        exponent = Signal(signed(11), reset_less=True)
        zero = Signal(reset_less=True)
        dividing = Signal(reset_less=True)
        divisor = Signal(MANTISSA_BITS, reset_less=True)  # MUL: b.m
        remainder = Signal(MANTISSA_BITS + 1, reset_less=True)  # MUL: a.m; always < 2 * divisor

        difference = Signal(signed(MANTISSA_BITS + 2))
        quotient_bit = Signal()
        m.d.comb += [
            difference.eq(remainder - divisor),
            quotient_bit.eq(dividing & (difference >= 0)),
        ]

        done = Signal()
        below, above = Signal(), Signal()
        m.d.comb += [
            done.eq(bits[-1] | zero),
            below.eq(exponent < EXPONENT_MIN),
            above.eq(exponent > EXPONENT_MAX),
            response.scale.m.eq(Mux(zero, 0, bits[mantissa_at:])),
            response.scale.e.eq(exponent),
            response.range.eq(~zero & (below | above)),
        ]
        with m.If(zero):
            m.d.comb += response.scale.e.eq(0)
        with m.Elif(below):
            m.d.comb += response.scale.e.eq(EXPONENT_MIN)
        with m.Elif(above):
            m.d.comb += response.scale.e.eq(EXPONENT_MAX)

        with m.FSM():
            with m.State("ACCEPT"):
                m.d.comb += self.request.ready.eq(1)
                with m.If(self.request.valid):
                    m.d.sync += [
                        bits.eq(0),
                        divisor.eq(request.b.m),
                        remainder.eq(request.a.m),
                        zero.eq((request.a.m == 0) | (request.b.m == 0)),
                        dividing.eq(request.op == Operation.DIV),
                    ]
                    m.next = "NORMALIZE"
                    with m.Switch(request.op):
                        with m.Case(Operation.MUL):
                            m.d.sync += exponent.eq(request.a.e + request.b.e + 1)
                            m.next = "MULTIPLY"
                        with m.Case(Operation.DIV):
                            m.d.sync += exponent.eq(request.a.e - request.b.e + MANTISSA_BITS)
                        with m.Default():
                            m.d.sync += [
                                bits.eq(request.n),
                                exponent.eq(INTEGER_BITS - 1),
                                zero.eq(request.n == 0),
                            ]

            with m.State("MULTIPLY"):
                m.d.sync += bits[-2 * MANTISSA_BITS :].eq(remainder[:MANTISSA_BITS] * divisor)
                m.next = "NORMALIZE"

            with m.State("NORMALIZE"):
                with m.If(done):
                    m.d.comb += self.response.valid.eq(1)
                    with m.If(self.response.ready):
                        m.next = "ACCEPT"
                with m.Elif(~dividing & ~bits[-STRIDE:].any()):
                    m.d.sync += [
                        bits.eq(bits << STRIDE),
                        exponent.eq(exponent - STRIDE),
                    ]
                with m.Else():
                    m.d.sync += [
                        bits.eq((bits << 1) | (quotient_bit << mantissa_at)),
                        exponent.eq(exponent - 1),
                        remainder.eq(Mux(quotient_bit, difference, remainder) << 1),
                    ]
        return m
