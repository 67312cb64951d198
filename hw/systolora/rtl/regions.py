"""Regions of memory: rows of bytes at a stride, and whether one may be touched."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "ROWS_BITS",
    "ROW_BYTES_BITS",
    "STRIDE_BITS",
    "CheckedLayout",
    "MemoryCode",
    "RegionCheck",
    "RegionLayout",
]

ROWS_BITS = 16
ROW_BYTES_BITS = 24
STRIDE_BITS = 32


class MemoryCode(enum.Enum, shape=3):
    """How a request ended. The first that applies, in this order; bus errors: the first seen."""

    OK = 0
    EMPTY = 1  # refused: no rows, or no bytes in a row
    UNALIGNED = 2  # refused: a row starts where the engine cannot start one
    OUTSIDE = 3  # refused: not wholly inside the window
    ABORTED = 4  # ended by `soft_abort`
    SLAVE = 5  # SLVERR
    DECODE = 6  # DECERR


def RegionLayout(address_bits: int) -> data.StructLayout:
    """A 2-D region: row r is the `row_bytes` bytes from `address + r * stride`.

    All unsigned, all in bytes but `rows`. Rows may overlap: stride 0 repeats one row.
    """
    return data.StructLayout(
        {
            "address": address_bits,
            "rows": ROWS_BITS,
            "row_bytes": ROW_BYTES_BITS,
            "stride": STRIDE_BITS,
        }
    )


def CheckedLayout(address_bits: int) -> data.StructLayout:
    """A region and what its check says of it: OK, EMPTY, UNALIGNED or OUTSIDE."""
    return data.StructLayout({"region": RegionLayout(address_bits), "code": MemoryCode})


class RegionCheck(wiring.Component):
    """Checks a whole region against the rules of an engine and its window.

    ``base <= address`` and ``address + (rows - 1) * stride + row_bytes <= limit``, computed
    without overflow (a region that leaves the address space is outside). With `whole_words`,
    `row_bytes` counts up to whole bus words, as a read touches them.

    Every row must start at a multiple of `align` bytes, and of the least power of two that is no
    less than `row_bytes`, up to the bus's width: so a row shorter than a bus word is inside one,
    and any other starts with one. `stride` does not matter if there is only one row.

    One request at a time: its answer is valid 3 + n cycles after the cycle that takes it, n being
    the bits of `rows` - 1 (0 for one row), and the next is taken in the cycle after the answer
    was.

    Parameters
    ----------
    bus_bytes : width of the bus
    address_bits : width of an address
    align : bytes, a power of two up to `bus_bytes`
    whole_words : whether rows are accessed in whole bus words

    Members
    -------
    base, limit : first address of the window, and the first one after it; stable while a request
        is in work. `limit` has one more bit, so that a window may end with the address space.
    request : In(stream.Signature(RegionLayout))
    response : Out(stream.Signature(CheckedLayout))
    busy : a request is in work
    """

    #: Cycles from a request to its answer, at most.
    LATENCY = 3 + ROWS_BITS

    def __init__(self, *, bus_bytes: int, address_bits: int, align: int, whole_words: bool) -> None:
        if align < 1 or align > bus_bytes or align & (align - 1):
            raise ValueError(f"align must be a power of two up to {bus_bytes}, not {align!r}")
        self.design_key: Hashable = (bus_bytes, address_bits, align, whole_words)
        self._bus_bytes, self._address_bits = bus_bytes, address_bits
        self._align, self._whole_words = align, whole_words
        self._checked = CheckedLayout(address_bits)
        super().__init__(
            {
                "base": In(address_bits),
                "limit": In(address_bits + 1),
                "request": In(stream.Signature(RegionLayout(address_bits))),
                "response": Out(stream.Signature(self._checked)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word_bits = self._bus_bytes.bit_length() - 1
        request = self.request.payload
        region = Signal(RegionLayout(self._address_bits), reset_less=True)
        code = Signal(MemoryCode, reset_less=True)
        # The sum of an address, a product and a row's bytes
        end = Signal(
            max(self._address_bits, ROWS_BITS + STRIDE_BITS, ROW_BYTES_BITS) + 2, reset_less=True
        )
        multiplier = Signal(ROWS_BITS, reset_less=True)
        multiple = Signal(ROWS_BITS + STRIDE_BITS - 1, reset_less=True)
        m.d.comb += [
            self.response.payload.region.eq(region),
            self.response.payload.code.eq(code),
        ]

        # Bits of an address that must be zero where a row starts
        starts = Signal(word_bits)
        odd = Signal()
        m.d.comb += [
            starts.eq(region.address | Mux(region.rows == 1, 0, region.stride)),
            odd.eq(
                Cat(
                    starts[bit] & ((self._align > 1 << bit) | (region.row_bytes > 1 << bit))
                    for bit in range(word_bits)
                ).any()
            ),
        ]

        # One adder: the product's terms, then the row's bytes
        reach = Signal(ROW_BYTES_BITS + 1)
        if self._whole_words:
            words = Signal(ROW_BYTES_BITS + 1 - word_bits)
            m.d.comb += [
                words.eq((region.row_bytes + (self._bus_bytes - 1)) >> word_bits),
                reach.eq(words << word_bits),
            ]
        else:
            m.d.comb += reach.eq(region.row_bytes)
        term = Signal(multiple.shape())
        adding = Signal()
        total = Signal(end.shape())
        m.d.comb += total.eq(end + term)
        with m.If(adding):
            m.d.sync += end.eq(total)

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("TAKE"))
            with m.State("TAKE"):
                m.d.comb += self.request.ready.eq(1)
                m.d.sync += [
                    region.eq(request),
                    multiplier.eq(request.rows - 1),
                    multiple.eq(request.stride),
                    end.eq(request.address),
                ]
                with m.If(self.request.valid):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.comb += adding.eq(1)
                m.d.sync += [multiplier.eq(multiplier >> 1), multiple.eq(multiple << 1)]
                with m.If(multiplier == 0):
                    m.d.comb += term.eq(reach)
                    m.next = "DECIDE"
                with m.Elif(multiplier[0]):
                    m.d.comb += term.eq(multiple)
            with m.State("DECIDE"):
                with m.If((region.rows == 0) | (region.row_bytes == 0)):
                    m.d.sync += code.eq(MemoryCode.EMPTY)
                with m.Elif(odd):
                    m.d.sync += code.eq(MemoryCode.UNALIGNED)
                with m.Elif((region.address < self.base) | (end > self.limit)):
                    m.d.sync += code.eq(MemoryCode.OUTSIDE)
                with m.Else():
                    m.d.sync += code.eq(MemoryCode.OK)
                m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += self.response.valid.eq(1)
                with m.If(self.response.ready):
                    m.next = "TAKE"
        return m
