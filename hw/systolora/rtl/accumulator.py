"""One column of the accumulator buffer: its banks, and the read-add-write of the array's sums."""

from collections.abc import Hashable

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolora.config import ACC_BANKS
from systolora.rtl.layouts import SumControl

__all__ = ["AccumulatorLane", "BankControl", "one_bank"]

#: The two ways from the array into the banks: WS sums and rows of the drain chain.
PATHS = ("sum", "drain")


def one_bank(strobe: Value, bank: Value):
    """A bit per bank: `strobe` at `bank`, else 0.

    No shift: Verilog's shift of a 0 by an undefined amount is undefined, and `bank` may come from
    registers without a reset.
    """
    return Cat(strobe & (bank == index) for index in range(ACC_BANKS))


def BankControl(bank_bits: int) -> data.StructLayout:
    """What the post-processor asks of the banks; the same for all lanes, by bank."""
    return data.StructLayout(
        {
            "own": unsigned(ACC_BANKS),
            "read": unsigned(ACC_BANKS),
            "read_row": data.ArrayLayout(bank_bits, ACC_BANKS),
            "write": unsigned(ACC_BANKS),
            "write_row": unsigned(bank_bits),
        }
    )


class AccumulatorLane(wiring.Component):
    """Adds a row of WS sums and a drained row per cycle; lends free banks to the post-processor.

    ``acc[address] = (acc[address] if accumulate else 0) + (sum << 8 * shift)``

    Each of the two paths has a control word of its own, which comes one cycle before the sum: it
    reads in cycle t, adds in t + 1, writes in t + 2. On one path the same accumulator may come
    again in any later cycle (the two younger sums are forwarded). The two paths must keep off each
    other's bank: rows that reach a bank on one path come at least `APART` cycles after those that
    reached it on the other.

    A control word leaves one cycle later, for the next lane, whose sums are one cycle later too:
    the skew of the array's columns needs no registers for data.

    A bank belongs to the post-processor while its `own` bit is set; the sequencer sends no sums
    there meanwhile. `read_data` follows `read` by one cycle.

    Parameters
    ----------
    acc_bits, psum_bits : widths of an accumulator and of a partial sum
    depth : accumulators, a power of two; the upper bits of an address are the bank

    Members
    -------
    sum_in, sum_out, sum : control words and value of the WS sums
    drain_in, drain_out, drain : those of the drain chain
    banks, write_data, read_data : the post-processor's side
    """

    LATENCY = 2
    #: Cycles from a control word to the sum readable by the post-processor, and by the other path.
    READABLE = APART = 3

    def __init__(self, *, acc_bits: int, psum_bits: int, depth: int) -> None:
        if acc_bits < psum_bits:
            raise ValueError(f"acc_bits must be at least psum_bits = {psum_bits}, not {acc_bits}")
        self.design_key: Hashable = (acc_bits, psum_bits, depth)
        self._acc_bits, self._bank_depth = acc_bits, depth // ACC_BANKS
        self._bank_bits = (self._bank_depth - 1).bit_length()
        address_bits = (depth - 1).bit_length()
        acc, psum = signed(acc_bits), signed(psum_bits)
        control = SumControl(address_bits)
        members: dict[str, wiring.Member] = {
            "banks": In(BankControl(self._bank_bits)),
            "write_data": In(acc),
            "read_data": Out(acc).array(ACC_BANKS),
        }
        for path in PATHS:
            members |= {f"{path}_in": In(control), f"{path}_out": Out(control), path: In(psum)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        acc, bank_bits = signed(self._acc_bits), self._bank_bits
        writes = {path: self._path(m, path) for path in PATHS}
        for bank in range(ACC_BANKS):
            memory = Memory(shape=acc, depth=self._bank_depth, init=[])
            m.submodules[f"bank_{bank}"] = memory
            rp, wp = memory.read_port(), memory.write_port()
            own = self.banks.own[bank]
            read, write = Signal(len(PATHS), name=f"read_{bank}"), Signal(2, name=f"write_{bank}")
            for index, path in enumerate(PATHS):
                word, (valid, address, _) = getattr(self, f"{path}_in"), writes[path]
                m.d.comb += [
                    read[index].eq(
                        word.valid & word.accumulate & (word.address[bank_bits:] == bank)
                    ),
                    write[index].eq(valid & (address[bank_bits:] == bank)),
                ]
            read_row = Mux(read[1], self.drain_in.address, self.sum_in.address)[:bank_bits]
            write_row = Mux(write[1], writes["drain"][1], writes["sum"][1])[:bank_bits]
            m.d.comb += [
                rp.en.eq(Mux(own, self.banks.read[bank], read.any())),
                rp.addr.eq(Mux(own, self.banks.read_row[bank], read_row)),
                wp.en.eq(Mux(own, self.banks.write[bank], write.any())),
                wp.addr.eq(Mux(own, self.banks.write_row, write_row)),
                wp.data.eq(
                    Mux(
                        own,
                        self.write_data,
                        Mux(write[1], writes["drain"][2], writes["sum"][2]),
                    )
                ),
                self.read_data[bank].eq(rp.data),
            ]
        return m

    def _path(self, m: Module, path: str) -> tuple[Value, Signal, Signal]:
        """The adder of one path; returns what it writes: valid, address, value."""
        acc = signed(self._acc_bits)
        ctl_in, ctl_out = getattr(self, f"{path}_in"), getattr(self, f"{path}_out")

        # Stage 0: read
        ctl = Signal.like(ctl_in, name=f"{path}_ctl", reset_less=True)
        valid = Signal(name=f"{path}_valid")
        m.d.sync += [ctl.eq(ctl_in), valid.eq(ctl_in.valid)]
        m.d.comb += [ctl_out.eq(ctl), ctl_out.valid.eq(valid)]

        # Stage 1: add, with the younger of the sums that the memory does not show yet
        value = Signal(acc, name=f"{path}_value", reset_less=True)
        older = Signal(acc, name=f"{path}_older", reset_less=True)
        old = Signal(acc, name=f"{path}_old")
        moved = Signal(acc, name=f"{path}_moved")
        read = Array(self.read_data)[ctl.address[self._bank_bits :]]
        m.d.comb += old.eq(Mux(ctl.forward_1, value, Mux(ctl.forward_2, older, read)))
        with m.Switch(ctl.shift):
            for shift in range(3):
                with m.Case(shift):
                    # Fits unless the caller breaks numerics section 9; without int16 only 0 is used
                    m.d.comb += moved.eq(getattr(self, path) << (8 * shift))
        m.d.sync += [value.eq(Mux(ctl.accumulate, old, 0) + moved), older.eq(value)]

        # Stage 2: write
        write_valid = Signal(name=f"{path}_write")
        address = Signal(len(ctl.address), name=f"{path}_address", reset_less=True)
        m.d.sync += [write_valid.eq(valid), address.eq(ctl.address)]
        return write_valid, address, value
