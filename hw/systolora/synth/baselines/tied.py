"""Our PE with abilities taken away: inputs that they need are constants, and synthesis drops what
hangs on them. So what an ability costs is measured on the PE itself, not on a copy of it."""

from collections.abc import Hashable, Mapping

from amaranth.hdl import Module
from amaranth.lib import wiring

from systolora.rtl.pe import PE
from systolora.rtl.placement import place

__all__ = ["ABILITIES", "TiedPE"]

#: By the name of a unit: what it is, constant ports, constant bits of the control word.
ABILITIES: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "pe_top_edge": (
        "our PE with one load edge: nothing enters from the left, or transposed",
        {"left_in": 0, "b_left": 0},
        {},
    ),
    "pe_ws": (
        "our PE, weight-stationary alone: no sum is held, nothing drains",
        {"d_in": 0},
        {"ws": 1, "d_load": 0, "d_shift": 0},
    ),
    "pe_ws_top_edge": (
        "our PE, weight-stationary, with one load edge: what textbooks have",
        {"d_in": 0, "left_in": 0, "b_left": 0},
        {"ws": 1, "d_load": 0, "d_shift": 0},
    ),
    "pe_os": (
        "our PE, output-stationary alone: the second operand passes, no sum comes from above",
        {"s_in": 0, "left_in": 0, "b_left": 0},
        {"ws": 0, "b_shift": 1, "w_load": 1},
    ),
}


class TiedPE(wiring.Component):
    """The PE with some of its inputs constant.

    Parameters
    ----------
    operand_bits, psum_bits : as for the PE
    ports : inputs by name, with their values
    control : bits of `ctl_in`, with their values; `ctl_out` passes on those of the input

    Members
    -------
    Those of the PE; what is constant inside is not looked at.
    """

    def __init__(
        self,
        *,
        operand_bits: int,
        psum_bits: int,
        ports: Mapping[str, int],
        control: Mapping[str, int],
    ) -> None:
        self._pe = PE(operand_bits=operand_bits, psum_bits=psum_bits)
        self._ports, self._control = dict(ports), dict(control)
        self.design_key: Hashable = (
            self._pe.design_key,
            *sorted(self._ports.items()),
            *sorted(self._control.items()),
        )
        super().__init__(dict(self._pe.signature.members))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pe = self._pe
        place(m, platform, "pe", pe)
        for name, member in self.signature.members.items():
            inner, outer = getattr(pe, name), getattr(self, name)
            if member.flow == wiring.Out:
                m.d.comb += outer.eq(inner)
            elif name in self._ports:
                m.d.comb += inner.eq(self._ports[name])
            else:
                m.d.comb += inner.eq(outer)
        for name, value in self._control.items():
            m.d.comb += pe.ctl_in[name].eq(value)
        return m
