// Between the plain pins and the ports of the design that Verilator translated.
#ifndef SYSTOLORA_HARNESS_DESIGN_H
#define SYSTOLORA_HARNESS_DESIGN_H

#include <cstring>

#include "Vtop.h"
#include "pins.h"

// Ports up to 64 bits are integers, wider ones arrays of 32-bit words, least significant first:
// in memory both are little-endian bytes, on the machines that Verilator supports here.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a little-endian machine is assumed");

constexpr unsigned BUS_BYTES = sizeof(Vtop::m_axi_wdata);
static_assert(BUS_BYTES >= 8 && BUS_BYTES <= MAX_BUS_BYTES, "m_axi_wdata: 64 to 1024 bits");
static_assert(sizeof(Vtop::m_axi_rdata) == BUS_BYTES, "m_axi: read and write data of one width");

inline void drive(Vtop& top, const MemoryPins& memory, const LiteMasterPins& lite) {
    top.m_axi_arready = memory.arready;
    top.m_axi_awready = memory.awready;
    top.m_axi_wready = memory.wready;
    top.m_axi_rid = 0;
    top.m_axi_rvalid = memory.rvalid;
    top.m_axi_rlast = memory.rlast;
    top.m_axi_rresp = memory.rresp;
    std::memcpy(&top.m_axi_rdata, memory.rdata, BUS_BYTES);
    top.m_axi_bid = 0;
    top.m_axi_bvalid = memory.bvalid;
    top.m_axi_bresp = memory.bresp;

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

inline void sample(const Vtop& top, MasterPins& master, LiteSlavePins& lite) {
    master.ar = {top.m_axi_arvalid != 0, top.m_axi_araddr,  top.m_axi_arlen, top.m_axi_arsize,
                 top.m_axi_arburst,      top.m_axi_arid, top.m_axi_arcache, top.m_axi_arprot};
    master.aw = {top.m_axi_awvalid != 0, top.m_axi_awaddr,  top.m_axi_awlen, top.m_axi_awsize,
                 top.m_axi_awburst,      top.m_axi_awid, top.m_axi_awcache, top.m_axi_awprot};
    master.wvalid = top.m_axi_wvalid;
    if (master.wvalid) {
        master.wlast = top.m_axi_wlast;
        std::memcpy(&master.wstrb, &top.m_axi_wstrb, sizeof(Vtop::m_axi_wstrb));
        std::memcpy(master.wdata, &top.m_axi_wdata, BUS_BYTES);
    }
    master.rready = top.m_axi_rready;
    master.bready = top.m_axi_bready;

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
