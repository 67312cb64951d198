"""Signature of an AXI4-Lite port, with AMBA's member names."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import Response

__all__ = ["DATA_BITS", "LiteSignature"]

#: Widths of AXI4-Lite data, in bits (AMBA AXI, B1.1.1).
DATA_BITS = (32, 64)


class LiteSignature(wiring.Signature):
    """All channels of AXI4-Lite, seen from the master: single accesses of whole or part words.

    Parameters
    ----------
    address_bits : width of an address, which counts bytes
    data_bits : 32 or 64

    Members
    -------
    awaddr, awprot, awvalid, awready : the write address
    wdata, wstrb, wvalid, wready : the write data, one strobe a byte
    bresp, bvalid, bready : the write response
    araddr, arprot, arvalid, arready : the read address
    rdata, rresp, rvalid, rready : the read data

    Raises
    ------
    ValueError
        If there is no such bus.
    """

    def __init__(self, address_bits: int, data_bits: int = 32) -> None:
        if not 1 <= address_bits <= 64:
            raise ValueError(f"address_bits must be 1 to 64, not {address_bits!r}")
        if data_bits not in DATA_BITS:
            raise ValueError(f"data_bits must be one of {DATA_BITS}, not {data_bits!r}")
        self.address_bits, self.data_bits = address_bits, data_bits
        super().__init__(
            {
                "awaddr": Out(address_bits),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(data_bits),
                "wstrb": Out(data_bits // 8),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(Response),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(address_bits),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(data_bits),
                "rresp": In(Response),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )
