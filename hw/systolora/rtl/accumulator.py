"""One column of the accumulator buffer: two banks, and the read-add-write of the array's sums."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolora.rtl.layouts import SumControl

__all__ = ["AccumulatorLane", "BankControl"]

BANKS = 2


def BankControl(bank_bits: int) -> data.StructLayout:
    """What the post-processor asks of the banks; the same for all lanes, by bank."""
    return data.StructLayout(
        {
            "own": unsigned(BANKS),
            "read": unsigned(BANKS),
            "read_row": data.ArrayLayout(bank_bits, BANKS),
            "write": unsigned(BANKS),
            "write_row": unsigned(bank_bits),
        }
    )


class AccumulatorLane(wiring.Component):
    """Adds one row of sums per cycle to its accumulators; lends free banks to the post-processor.

    ``acc[address] = (acc[address] if accumulate else 0) + (sum << 8 * shift)``

    The control word `ctl_in` comes one cycle before the sum: it reads in cycle t, adds in t + 1,
    writes in t + 2; the same accumulator may come again in any later cycle (the two younger sums
    are forwarded). `ctl_out` is `ctl_in` one cycle later, for the next lane, whose sums are one
    cycle later too: the skew of the array's columns needs no registers for data.

    A bank belongs to the post-processor while its `own` bit is set; the sequencer sends no sums
    there meanwhile. `read_data` follows `read` by one cycle.

    Parameters
    ----------
    acc_bits, psum_bits : widths of an accumulator and of a partial sum
    depth : accumulators, a power of two; the upper half is bank 1
    """

    LATENCY = 2
    #: Cycles from `ctl_in` to the sum readable by the post-processor.
    READABLE = 3

    def __init__(self, *, acc_bits: int, psum_bits: int, depth: int) -> None:
        if acc_bits < psum_bits:
            raise ValueError(f"acc_bits must be at least psum_bits = {psum_bits}, not {acc_bits}")
        self.design_key: Hashable = (acc_bits, psum_bits, depth)
        self._acc_bits, self._depth = acc_bits, depth
        self._address_bits = (depth - 1).bit_length()
        acc, psum = signed(acc_bits), signed(psum_bits)
        control = SumControl(self._address_bits)
        super().__init__(
            {
                "ctl_in": In(control),
                "ctl_out": Out(control),
                "psum": In(psum),
                "drain": In(psum),
                "banks": In(BankControl(self._address_bits - 1)),
                "write_data": In(acc),
                "read_data": Out(acc).array(BANKS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        acc = signed(self._acc_bits)
        bank_bits = self._address_bits - 1

        # Stage 0: read
        ctl = Signal.like(self.ctl_in, reset_less=True)
        valid = Signal()
        m.d.sync += [ctl.eq(self.ctl_in), valid.eq(self.ctl_in.valid)]
        m.d.comb += [self.ctl_out.eq(ctl), self.ctl_out.valid.eq(valid)]

        # Stage 1: add, with the younger of the sums that the memory does not show yet
        read = Signal(acc)
        sum_q = Signal(acc, reset_less=True)
        sum_q2 = Signal(acc, reset_less=True)
        old = Signal(acc)
        moved = Signal(acc)
        psum = Signal(self.psum.shape())
        m.d.comb += [
            old.eq(Mux(ctl.forward_1, sum_q, Mux(ctl.forward_2, sum_q2, read))),
            psum.eq(Mux(ctl.drain, self.drain, self.psum)),
        ]
        with m.Switch(ctl.shift):
            for shift in range(3):
                with m.Case(shift):
                    # Fits unless the caller breaks numerics section 9; without int16 only 0 is used
                    m.d.comb += moved.eq(psum << (8 * shift))
        m.d.sync += [sum_q.eq(Mux(ctl.accumulate, old, 0) + moved), sum_q2.eq(sum_q)]

        # Stage 2: write
        write_valid = Signal()
        write_address = Signal(self._address_bits, reset_less=True)
        m.d.sync += [write_valid.eq(valid), write_address.eq(ctl.address)]

        bank_q = Signal(reset_less=True)
        m.d.comb += bank_q.eq(ctl.address[-1])
        for bank in range(BANKS):
            memory = Memory(shape=acc, depth=self._depth // BANKS, init=[])
            m.submodules[f"bank_{bank}"] = memory
            rp, wp = memory.read_port(), memory.write_port()
            own = self.banks.own[bank]
            array_read = Signal(name=f"array_read_{bank}")
            array_write = Signal(name=f"array_write_{bank}")
            m.d.comb += [
                array_read.eq(
                    self.ctl_in.valid & self.ctl_in.accumulate & (self.ctl_in.address[-1] == bank)
                ),
                array_write.eq(write_valid & (write_address[-1] == bank)),
                rp.en.eq(Mux(own, self.banks.read[bank], array_read)),
                rp.addr.eq(Mux(own, self.banks.read_row[bank], self.ctl_in.address[:bank_bits])),
                wp.en.eq(Mux(own, self.banks.write[bank], array_write)),
                wp.addr.eq(Mux(own, self.banks.write_row, write_address[:bank_bits])),
                wp.data.eq(Mux(own, self.write_data, sum_q)),
                self.read_data[bank].eq(rp.data),
            ]
        m.d.comb += read.eq(Mux(bank_q, self.read_data[1], self.read_data[0]))
        return m
