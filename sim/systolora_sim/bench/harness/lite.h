// Single accesses over AXI4-Lite, one at a time.
#ifndef SYSTOLORA_HARNESS_LITE_H
#define SYSTOLORA_HARNESS_LITE_H

#include "common.h"
#include "pins.h"

class LiteMaster {
public:
    LiteMaster(bool stalls, uint64_t seed);

    void begin_write(uint32_t offset, uint32_t value, unsigned strobe);
    void begin_read(uint32_t offset);
    void reset();

    // Whether the access begun is answered.
    bool done() const { return !writing_ && !reading_; }
    // What it was answered with.
    unsigned response() const { return response_; }
    uint32_t value() const { return value_; }
    // Cycle in which the write was complete at the slave: the later of AW and W.
    uint64_t accepted() const { return accepted_; }

    const LiteMasterPins& pins() const { return out_; }
    // Takes what moved at the end of `cycle`; throws Stop where the slave breaks a rule.
    void step(uint64_t cycle, const LiteSlavePins& slave);
    void check_reset(uint64_t cycle, const LiteSlavePins& slave) const;

private:
    void check_stable(uint64_t cycle, const LiteSlavePins& slave);

    LiteMasterPins out_;
    LiteSlavePins before_;
    bool writing_ = false, reading_ = false;
    bool aw_left_ = false, w_left_ = false, ar_left_ = false;
    unsigned response_ = OKAY;
    uint32_t value_ = 0;
    uint64_t accepted_ = 0;
    Stalls stall_aw_, stall_w_, stall_b_, stall_ar_, stall_r_;
};

#endif
