"""A reader and a writer on one AXI4 port: what the tests of the memory engines simulate."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, flipped

from systolora.rtl.axi import MemorySignature, ReadSignature, WriteSignature
from systolora.rtl.flow import link
from systolora.rtl.memory_reader import BeatLayout, MemoryReader
from systolora.rtl.memory_writer import MemoryWriter
from systolora.rtl.regions import MemoryCode, RegionLayout


class MemoryEngines(wiring.Component):
    """Both engines; their ports with the prefixes `r_` and `w_`."""

    def __init__(
        self, *, data_bits: int, address_bits: int, outstanding: int, burst_beats: int, align: int
    ) -> None:
        common = {
            "data_bits": data_bits,
            "address_bits": address_bits,
            "outstanding": outstanding,
            "burst_beats": burst_beats,
        }
        self.reader = MemoryReader(**common)
        self.writer = MemoryWriter(**common, align=align)
        self._bits = data_bits, address_bits
        members: dict[str, wiring.Member] = {"m_axi": Out(MemorySignature(*self._bits))}
        for way in "rw":
            members |= {
                f"{way}_base": In(address_bits),
                f"{way}_limit": In(address_bits + 1),
                f"{way}_soft_abort": In(1),
                f"{way}_busy": Out(1),
                f"{way}_request": In(stream.Signature(RegionLayout(address_bits))),
                f"{way}_response": Out(stream.Signature(MemoryCode)),
            }
        members["r_beats"] = Out(stream.Signature(BeatLayout(data_bits)))
        members["w_beats"] = In(stream.Signature(data_bits))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader = self.reader
        m.submodules.writer = self.writer
        for way, engine, side in (
            ("r", self.reader, ReadSignature(*self._bits)),
            ("w", self.writer, WriteSignature(*self._bits)),
        ):
            m.d.comb += [
                engine.base.eq(getattr(self, f"{way}_base")),
                engine.limit.eq(getattr(self, f"{way}_limit")),
                engine.soft_abort.eq(getattr(self, f"{way}_soft_abort")),
                getattr(self, f"{way}_busy").eq(engine.busy),
            ]
            link(m, flipped(getattr(self, f"{way}_request")), engine.request)
            link(m, engine.response, flipped(getattr(self, f"{way}_response")))
            for name, member in side.members.items():
                inner, outer = getattr(engine.m_axi, name), getattr(self.m_axi, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        link(m, self.reader.beats, flipped(self.r_beats))
        link(m, flipped(self.w_beats), self.writer.beats)
        return m
