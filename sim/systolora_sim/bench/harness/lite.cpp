#include "lite.h"

LiteMaster::LiteMaster(bool stalls, uint64_t seed)
    : stall_aw_{stalls, seed, 16},
      stall_w_{stalls, seed, 17},
      stall_b_{stalls, seed, 18},
      stall_ar_{stalls, seed, 19},
      stall_r_{stalls, seed, 20} {}

void LiteMaster::reset() {
    out_ = LiteMasterPins{};
    before_ = LiteSlavePins{};
    writing_ = reading_ = aw_left_ = w_left_ = ar_left_ = false;
}

void LiteMaster::begin_write(uint32_t offset, uint32_t value, unsigned strobe) {
    writing_ = aw_left_ = w_left_ = true;
    out_.awaddr = offset;
    out_.wdata = value;
    out_.wstrb = strobe;
}

void LiteMaster::begin_read(uint32_t offset) {
    reading_ = ar_left_ = true;
    out_.araddr = offset;
}

void LiteMaster::check_reset(uint64_t cycle, const LiteSlavePins& slave) const {
    if (slave.bvalid || slave.rvalid)
        violation(cycle, text("s_axil: %s is 1 in reset", slave.bvalid ? "bvalid" : "rvalid"));
}

void LiteMaster::check_stable(uint64_t cycle, const LiteSlavePins& now) {
    const LiteSlavePins& was = before_;
    if (was.bvalid && (!now.bvalid || now.bresp != was.bresp))
        violation(cycle, "s_axil: B was withdrawn or changed before bready");
    if (was.rvalid && (!now.rvalid || now.rresp != was.rresp || now.rdata != was.rdata))
        violation(cycle, "s_axil: R was withdrawn or changed before rready");
}

void LiteMaster::step(uint64_t cycle, const LiteSlavePins& slave) {
    check_stable(cycle, slave);
    const bool b = slave.bvalid && out_.bready, r = slave.rvalid && out_.rready;
    if (slave.bvalid && (!writing_ || aw_left_ || w_left_))
        violation(cycle, "s_axil: bvalid before a write is complete");
    if (slave.rvalid && (!reading_ || ar_left_)) violation(cycle, "s_axil: rvalid without a read");
    before_ = slave;
    if (b) before_.bvalid = false;
    if (r) before_.rvalid = false;

    if (out_.awvalid && slave.awready) {
        out_.awvalid = aw_left_ = false;
        accepted_ = cycle;
    }
    if (out_.wvalid && slave.wready) {
        out_.wvalid = w_left_ = false;
        accepted_ = cycle;
    }
    if (out_.arvalid && slave.arready) out_.arvalid = ar_left_ = false;
    if (b) {
        writing_ = false;
        response_ = slave.bresp;
    }
    if (r) {
        reading_ = false;
        response_ = slave.rresp;
        value_ = slave.rdata;
    }

    // The pins of the next cycle; what is offered stays.
    out_.awvalid = out_.awvalid || (aw_left_ && !stall_aw_.stalled());
    out_.wvalid = out_.wvalid || (w_left_ && !stall_w_.stalled());
    out_.arvalid = out_.arvalid || (ar_left_ && !stall_ar_.stalled());
    out_.bready = writing_ && !stall_b_.stalled();
    out_.rready = reading_ && !stall_r_.stalled();
}
