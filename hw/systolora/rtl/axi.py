"""Signatures of an AXI4 memory master, with AMBA's member names."""

from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "ADDRESS_BITS",
    "BOUNDARY",
    "BURST_BEATS_MAX",
    "DATA_BITS",
    "Burst",
    "MemorySignature",
    "ReadSignature",
    "Response",
    "WriteSignature",
    "check_engine",
]

#: Widths that the engines are made for, in bits: of a bus, or of several side by side.
DATA_BITS = (64, 128, 256, 512, 1024, 2048)

#: Width of an address where nothing else is said.
ADDRESS_BITS = 40

#: Bytes; a burst never crosses a multiple of it (AXI4, A3.4.1).
BOUNDARY = 4096

#: Beats of an INCR burst at most.
BURST_BEATS_MAX = 256

#: AxCACHE: Normal, Non-cacheable, Bufferable, what a master without a cache gives for memory.
CACHE = 0b0011

#: AxPROT: unprivileged, secure, data.
PROT = 0b000


class Burst(enum.Enum, shape=2):
    """AxBURST."""

    FIXED = 0
    INCR = 1
    WRAP = 2


class Response(enum.Enum, shape=2):
    """RRESP and BRESP. EXOKAY is no error; it comes only as an answer to exclusive accesses."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def check_engine(
    data_bits: int, address_bits: int, outstanding: int, burst_beats: int, queue_beats: int
) -> None:
    """Raises ValueError unless an engine can be built with these parameters."""
    if data_bits not in DATA_BITS:
        raise ValueError(f"data_bits must be one of {DATA_BITS}, not {data_bits!r}")
    if not 16 <= address_bits <= 64:
        raise ValueError(f"address_bits must be 16 to 64, not {address_bits!r}")
    if outstanding < 1:
        raise ValueError(f"outstanding must be at least 1, not {outstanding!r}")
    if not 1 <= burst_beats <= BURST_BEATS_MAX or burst_beats & (burst_beats - 1):
        raise ValueError(
            f"burst_beats must be a power of two up to {BURST_BEATS_MAX}, not {burst_beats!r}"
        )
    if queue_beats < burst_beats:
        raise ValueError(
            f"queue_beats must be at least burst_beats = {burst_beats}, not {queue_beats!r}"
        )


def _address(prefix: str, address_bits: int) -> dict[str, wiring.Member]:
    return {
        f"{prefix}id": Out(1),
        f"{prefix}addr": Out(address_bits),
        f"{prefix}len": Out(8),  # beats less one
        f"{prefix}size": Out(3),
        f"{prefix}burst": Out(Burst),
        f"{prefix}cache": Out(4),
        f"{prefix}prot": Out(3),
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
    }


class ReadSignature(wiring.Signature):
    """Read channels of AXI4, seen from the master: INCR bursts of whole words, one ID.

    Members
    -------
    arid : always 0; rid is not looked at
    araddr ... arready : the read address
    rid, rdata, rresp, rlast, rvalid, rready : the read data
    """

    def __init__(self, data_bits: int, address_bits: int = ADDRESS_BITS) -> None:
        self.data_bits, self.address_bits = data_bits, address_bits
        super().__init__(
            {
                **_address("ar", address_bits),
                "rid": In(1),
                "rdata": In(data_bits),
                "rresp": In(Response),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class WriteSignature(wiring.Signature):
    """Write channels of AXI4, seen from the master: INCR bursts of whole words, one ID.

    Members
    -------
    awid : always 0; bid is not looked at
    awaddr ... awready : the write address
    wdata, wstrb, wlast, wvalid, wready : the write data, one strobe a byte
    bid, bresp, bvalid, bready : the write response
    """

    def __init__(self, data_bits: int, address_bits: int = ADDRESS_BITS) -> None:
        self.data_bits, self.address_bits = data_bits, address_bits
        super().__init__(
            {
                **_address("aw", address_bits),
                "wdata": Out(data_bits),
                "wstrb": Out(data_bits // 8),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(1),
                "bresp": In(Response),
                "bvalid": In(1),
                "bready": Out(1),
            }
        )


class MemorySignature(wiring.Signature):
    """All channels of AXI4, seen from the master: ReadSignature and WriteSignature in one."""

    def __init__(self, data_bits: int, address_bits: int = ADDRESS_BITS) -> None:
        self.data_bits, self.address_bits = data_bits, address_bits
        channels = (Side(data_bits, address_bits) for Side in (ReadSignature, WriteSignature))
        super().__init__({name: m for side in channels for name, m in side.members.items()})
