"""The grid of PEs, in rows."""

from collections.abc import Hashable

from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.layouts import PEControl
from systolora.rtl.pe import PE
from systolora.rtl.placement import place

__all__ = ["PERow", "SystolicArray"]


class PERow(wiring.Component):
    """One row of C PEs.

    Members
    -------
    a_in, ctl_in : enter at column 0 and move right
    left[s] : data injected at column s * C/S when a tile loads from the left
    left_in[c], left_out[c] : enable of the load from the left, moving down
    top[c] : data from above (the row above, or an injection point of the load from the top)
    b_out[c], s_in[c], s_out[c], d_in[c], d_out[c] : see PE
    """

    def __init__(self, *, cols: int, segments: int, operand_bits: int, psum_bits: int) -> None:
        self.design_key: Hashable = (cols, segments, operand_bits, psum_bits)
        self._pe = {"operand_bits": operand_bits, "psum_bits": psum_bits}
        self._cols, self._segments = cols, segments
        operand, psum = signed(operand_bits), signed(psum_bits)
        super().__init__(
            {
                "a_in": In(operand),
                "ctl_in": In(PEControl),
                "left": In(operand).array(segments),
                "left_in": In(1).array(cols),
                "left_out": Out(1).array(cols),
                "top": In(operand).array(cols),
                "b_out": Out(operand).array(cols),
                "s_in": In(psum).array(cols),
                "s_out": Out(psum).array(cols),
                "d_in": In(psum).array(cols),
                "d_out": Out(psum).array(cols),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        load = self._cols // self._segments
        a, ctl = self.a_in, self.ctl_in
        previous: PE | None = None
        for col in range(self._cols):
            pe = PE(**self._pe)
            place(m, platform, f"pe_{col}", pe)
            from_left = self.left[col // load] if col % load == 0 else previous.b_out  # type: ignore[union-attr]
            m.d.comb += [
                pe.a_in.eq(a),
                pe.ctl_in.eq(ctl),
                pe.left_in.eq(self.left_in[col]),
                self.left_out[col].eq(pe.left_out),
                pe.b_left.eq(from_left),
                pe.b_top.eq(self.top[col]),
                self.b_out[col].eq(pe.b_out),
                pe.s_in.eq(self.s_in[col]),
                self.s_out[col].eq(pe.s_out),
                pe.d_in.eq(self.d_in[col]),
                self.d_out[col].eq(pe.d_out),
            ]
            a, ctl, previous = pe.a_out, pe.ctl_out, pe
        return m


class SystolicArray(wiring.Component):
    """R rows of C PEs with S injection rows and S injection columns; structure only.

    Everything at PE (r, c) happens r + c cycles after PE (0, 0); the ports take their values with
    that skew (`edge.ArrayEdge` makes it).

    Members
    -------
    a[r], ctl[r] : streamed operand and control word of row r, at column 0
    top[s][c] : operand injected at row s * R/S
    left[s][r] : operand injected at column s * C/S
    left_en[c] : enable of the load from the left, at row 0
    s_out[c], d_out[c] : bottom row's sums (WS) and drain chain (OS)
    """

    def __init__(
        self, *, rows: int, cols: int, segments: int, operand_bits: int, psum_bits: int
    ) -> None:
        self.design_key: Hashable = (rows, cols, segments, operand_bits, psum_bits)
        self._row = {
            "cols": cols,
            "segments": segments,
            "operand_bits": operand_bits,
            "psum_bits": psum_bits,
        }
        self._rows, self._cols, self._segments = rows, cols, segments
        operand, psum = signed(operand_bits), signed(psum_bits)
        super().__init__(
            {
                "a": In(operand).array(rows),
                "ctl": In(PEControl).array(rows),
                "top": In(operand).array(segments, cols),
                "left": In(operand).array(segments, rows),
                "left_en": In(1).array(cols),
                "s_out": Out(psum).array(cols),
                "d_out": Out(psum).array(cols),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        load = self._rows // self._segments
        above: PERow | None = None
        for index in range(self._rows):
            row = PERow(**self._row)
            place(m, platform, f"row_{index}", row)
            m.d.comb += [row.a_in.eq(self.a[index]), row.ctl_in.eq(self.ctl[index])]
            m.d.comb += [row.left[s].eq(self.left[s][index]) for s in range(self._segments)]
            for col in range(self._cols):
                if index % load == 0:
                    m.d.comb += row.top[col].eq(self.top[index // load][col])
                if above is None:
                    m.d.comb += row.left_in[col].eq(self.left_en[col])
                    continue
                if index % load != 0:
                    m.d.comb += row.top[col].eq(above.b_out[col])
                m.d.comb += [
                    row.left_in[col].eq(above.left_out[col]),
                    row.s_in[col].eq(above.s_out[col]),
                    row.d_in[col].eq(above.d_out[col]),
                ]
            above = row
        assert above is not None
        for col in range(self._cols):
            m.d.comb += [
                self.s_out[col].eq(above.s_out[col]),
                self.d_out[col].eq(above.d_out[col]),
            ]
        return m
