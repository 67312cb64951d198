"""Several memory readers on one AXI4 read port."""

from collections.abc import Hashable

from amaranth.hdl import Module, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import ADDRESS_BITS, DATA_BITS, ReadSignature

__all__ = ["ReadArbiter"]

#: Members of ReadSignature that go with an address, and with a beat.
_ADDRESS = ("arid", "araddr", "arlen", "arsize", "arburst", "arcache", "arprot")
_DATA = ("rid", "rdata", "rresp", "rlast")


class ReadArbiter(wiring.Component):
    """Sends the bursts of all clients to one memory, whose data comes back in order.

    Addresses pass in the cycle in which they are offered, one per cycle, round robin: the client
    after the one served last comes first. Once offered an address stays until it is taken. Beats
    pass in their cycle, too; a client's burst is known for its beats two cycles after its address
    was taken, and beats that come earlier wait. So there is no gap between the bursts of different
    clients, as long as memory takes two cycles or more.

    A client that does not take its beats stops the others; MemoryReader always does.

    Parameters
    ----------
    clients : number of masters, at least 2
    data_bits, address_bits : widths of the bus
    depth : bursts under way at most, at least 2; the sum of what the clients allow themselves
        loses nothing

    Members
    -------
    clients : In(ReadSignature).array(clients), what the masters' `m_axi` connect to
    m_axi : Out(ReadSignature)
    """

    def __init__(
        self,
        *,
        clients: int = 3,
        data_bits: int,
        address_bits: int = ADDRESS_BITS,
        depth: int,
    ) -> None:
        if clients < 2:
            raise ValueError(f"clients must be at least 2, not {clients!r}")
        if data_bits not in DATA_BITS:
            raise ValueError(f"data_bits must be one of {DATA_BITS}, not {data_bits!r}")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth!r}")
        self.design_key: Hashable = (clients, data_bits, address_bits, depth)
        self._count, self._depth = clients, depth
        bus = ReadSignature(data_bits, address_bits)
        super().__init__({"clients": In(bus).array(clients), "m_axi": Out(bus)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count, axi = self._count, self.m_axi
        m.submodules.order = order = fifo.SyncFIFOBuffered(
            width=(count - 1).bit_length(), depth=self._depth
        )

        # An address that was offered and not taken keeps its place
        grant, granted = Signal(range(count)), Signal(range(count))
        waits = Signal()
        m.d.comb += grant.eq(granted)
        with m.If(~waits), m.Switch(granted):
            for last in range(count):
                with m.Case(last):
                    for distance in reversed(range(1, count + 1)):  # the last that applies wins
                        client = (last + distance) % count
                        with m.If(self.clients[client].arvalid):
                            m.d.comb += grant.eq(client)
        with m.If(axi.arvalid):
            m.d.sync += granted.eq(grant)
        m.d.sync += waits.eq(axi.arvalid & ~axi.arready)

        with m.Switch(grant):
            for number in range(count):
                client = self.clients[number]
                with m.Case(number):
                    m.d.comb += [getattr(axi, name).eq(getattr(client, name)) for name in _ADDRESS]
                    m.d.comb += [
                        axi.arvalid.eq(client.arvalid & order.w_rdy),
                        client.arready.eq(axi.arready & order.w_rdy),
                    ]
        m.d.comb += [order.w_data.eq(grant), order.w_en.eq(axi.arvalid & axi.arready)]

        for number in range(count):
            client = self.clients[number]
            m.d.comb += [getattr(client, name).eq(getattr(axi, name)) for name in _DATA]
            with m.If(order.r_rdy & (order.r_data == number)):
                m.d.comb += [client.rvalid.eq(axi.rvalid), axi.rready.eq(client.rready)]
        m.d.comb += order.r_en.eq(axi.rvalid & axi.rready & axi.rlast)
        return m
