// Between the plain pins and the ports of the design that Verilator translated.
#ifndef SYSTOLORA_HARNESS_DESIGN_H
#define SYSTOLORA_HARNESS_DESIGN_H

#include <cstring>
#include <vector>

#include "Vtop.h"
#include "channels.h"

// Ports up to 64 bits are integers, wider ones arrays of 32-bit words, least significant first:
// in memory both are little-endian bytes, on the machines that Verilator supports here.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a little-endian machine is assumed");

// DO(port, channel) for each memory port, of which there are SYSTOLORA_CHANNELS.
#if SYSTOLORA_CHANNELS == 1
#define FOR_PORTS(DO) DO(m_axi, 0)
#define FIRST_PORT(member) Vtop::m_axi_##member
#elif SYSTOLORA_CHANNELS == 2
#define FOR_PORTS(DO) DO(m_axi_0, 0) DO(m_axi_1, 1)
#elif SYSTOLORA_CHANNELS == 4
#define FOR_PORTS(DO) DO(m_axi_0, 0) DO(m_axi_1, 1) DO(m_axi_2, 2) DO(m_axi_3, 3)
#else
#error "SYSTOLORA_CHANNELS: 1, 2 or 4"
#endif
#ifndef FIRST_PORT
#define FIRST_PORT(member) Vtop::m_axi_0_##member
#endif

constexpr unsigned CHANNELS = SYSTOLORA_CHANNELS;
constexpr unsigned BUS_BYTES = sizeof(FIRST_PORT(wdata));
static_assert(BUS_BYTES >= 8 && BUS_BYTES <= MAX_BUS_BYTES, "wdata: 64 to 1024 bits");
static_assert(sizeof(FIRST_PORT(rdata)) == BUS_BYTES, "read and write data of one width");

#define DRIVE_PORT(port, channel)                                   \
    {                                                               \
        const MemoryPins& memory = memories.pins(channel);          \
        top.port##_arready = memory.arready;                        \
        top.port##_awready = memory.awready;                        \
        top.port##_wready = memory.wready;                          \
        top.port##_rid = 0;                                         \
        top.port##_rvalid = memory.rvalid;                          \
        top.port##_rlast = memory.rlast;                            \
        top.port##_rresp = memory.rresp;                            \
        std::memcpy(&top.port##_rdata, memory.rdata, BUS_BYTES);    \
        top.port##_bid = 0;                                         \
        top.port##_bvalid = memory.bvalid;                          \
        top.port##_bresp = memory.bresp;                            \
    }

#define SAMPLE_ADDRESS(port, way)                                                   \
    {                                                                               \
        top.port##_##way##valid != 0, top.port##_##way##addr, top.port##_##way##len, \
            top.port##_##way##size, top.port##_##way##burst, top.port##_##way##id,  \
            top.port##_##way##cache, top.port##_##way##prot                         \
    }

#define SAMPLE_PORT(port, channel)                                                       \
    {                                                                                    \
        MasterPins& master = masters[channel];                                           \
        master.ar = SAMPLE_ADDRESS(port, ar);                                            \
        master.aw = SAMPLE_ADDRESS(port, aw);                                            \
        master.wvalid = top.port##_wvalid;                                               \
        if (master.wvalid) {                                                             \
            master.wlast = top.port##_wlast;                                             \
            std::memcpy(&master.wstrb, &top.port##_wstrb, sizeof(FIRST_PORT(wstrb)));    \
            std::memcpy(master.wdata, &top.port##_wdata, BUS_BYTES);                     \
        }                                                                                \
        master.rready = top.port##_rready;                                               \
        master.bready = top.port##_bready;                                               \
    }

inline void drive(Vtop& top, const Channels& memories, const LiteMasterPins& lite) {
    FOR_PORTS(DRIVE_PORT)

    top.s_axil_awaddr = lite.awaddr;
    top.s_axil_awprot = 0;
    top.s_axil_awvalid = lite.awvalid;
    top.s_axil_wdata = lite.wdata;
    top.s_axil_wstrb = lite.wstrb;
    top.s_axil_wvalid = lite.wvalid;
    top.s_axil_bready = lite.bready;
    top.s_axil_araddr = lite.araddr;
    top.s_axil_arprot = 0;
    top.s_axil_arvalid = lite.arvalid;
    top.s_axil_rready = lite.rready;
}

inline void sample(const Vtop& top, std::vector<MasterPins>& masters, LiteSlavePins& lite) {
    FOR_PORTS(SAMPLE_PORT)

    lite.awready = top.s_axil_awready;
    lite.wready = top.s_axil_wready;
    lite.bvalid = top.s_axil_bvalid;
    lite.bresp = top.s_axil_bresp;
    lite.arready = top.s_axil_arready;
    lite.rvalid = top.s_axil_rvalid;
    lite.rresp = top.s_axil_rresp;
    lite.rdata = top.s_axil_rdata;
}

#endif
