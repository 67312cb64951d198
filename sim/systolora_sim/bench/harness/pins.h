// What crosses the ports of the design in one cycle, in plain types: everything but design.h works
// without a header that Verilator generated.
#ifndef SYSTOLORA_HARNESS_PINS_H
#define SYSTOLORA_HARNESS_PINS_H

#include <cstdint>

constexpr unsigned MAX_BUS_BYTES = 128;

// A bit per byte of the widest bus.
using Strobe = unsigned __int128;
static_assert(8 * sizeof(Strobe) == MAX_BUS_BYTES, "a strobe for each byte");

// Responses, as AXI encodes them.
enum Response : unsigned { OKAY = 0, EXOKAY = 1, SLVERR = 2, DECERR = 3 };

// AR or AW as the master drives it; length is beats less one.
struct AddressChannel {
    bool valid = false;
    uint64_t address = 0;
    unsigned length = 0, size = 0, burst = 0, id = 0, cache = 0, prot = 0;

    bool operator==(const AddressChannel& o) const {
        return valid == o.valid && address == o.address && length == o.length && size == o.size
               && burst == o.burst && id == o.id && cache == o.cache && prot == o.prot;
    }
};

// The master's side of AXI4; wdata only where wvalid.
struct MasterPins {
    AddressChannel ar, aw;
    bool wvalid = false, wlast = false;
    Strobe wstrb = 0;
    uint8_t wdata[MAX_BUS_BYTES] = {};
    bool rready = false, bready = false;
};

// The memory's side of AXI4.
struct MemoryPins {
    bool arready = false, awready = false, wready = false;
    bool rvalid = false, rlast = false, bvalid = false;
    unsigned rresp = OKAY, bresp = OKAY;
    uint8_t rdata[MAX_BUS_BYTES] = {};
};

// AXI4-Lite, driven by the harness.
struct LiteMasterPins {
    bool awvalid = false, wvalid = false, bready = false, arvalid = false, rready = false;
    uint32_t awaddr = 0, wdata = 0, araddr = 0;
    unsigned wstrb = 0;
};

// AXI4-Lite, driven by the design.
struct LiteSlavePins {
    bool awready = false, wready = false, bvalid = false, arready = false, rvalid = false;
    unsigned bresp = OKAY, rresp = OKAY;
    uint32_t rdata = 0;
};

#endif
