#include "memory.h"

#include <cstring>

namespace {

constexpr uint64_t BOUNDARY = 4096;
constexpr size_t EARLY_BEATS = 512;
constexpr unsigned INCR = 1;
// Random streams from one channel to the next: beyond those of AXI4-Lite.
constexpr unsigned STREAMS = 24;

// ~0 in the low `bytes` bits.
Strobe all_strobes(unsigned bytes) { return ~Strobe{0} >> (MAX_BUS_BYTES - bytes); }

unsigned lowest(Strobe bits) {
    const auto low = static_cast<uint64_t>(bits);
    return low ? __builtin_ctzll(low) : 64 + __builtin_ctzll(static_cast<uint64_t>(bits >> 64));
}

unsigned highest(Strobe bits) {
    const auto high = static_cast<uint64_t>(bits >> 64);
    return high ? 127 - __builtin_clzll(high) : 63 - __builtin_clzll(static_cast<uint64_t>(bits));
}

unsigned count(Strobe bits) {
    return __builtin_popcountll(static_cast<uint64_t>(bits))
           + __builtin_popcountll(static_cast<uint64_t>(bits >> 64));
}

}  // namespace

MemoryImage::MemoryImage(uint64_t base, std::vector<uint8_t> bytes)
    : base_{base}, bytes_{std::move(bytes)}, last_writes_((bytes_.size() + WORD - 1) / WORD, 0) {
    if (base_ % BOUNDARY || bytes_.size() % WORD)
        throw Stop{"job", "memory: base must be a multiple of 4096 and size one of 64"};
}

bool MemoryImage::put(uint64_t address, const std::vector<uint8_t>& bytes) {
    if (!holds(address, bytes.size())) return false;
    std::memcpy(bytes_.data() + (address - base_), bytes.data(), bytes.size());
    return true;
}

void MemoryImage::write(uint64_t cycle, uint64_t address, const uint8_t* data, Strobe strobe,
                        unsigned bus_bytes) {
    const uint64_t offset = address - base_;
    uint8_t* target = bytes_.data() + offset;
    if (strobe == all_strobes(bus_bytes)) {
        std::memcpy(target, data, bus_bytes);
    } else {
        for (unsigned byte = 0; byte < bus_bytes; ++byte)
            if (strobe >> byte & 1) target[byte] = data[byte];
    }
    for (unsigned at = 0; at < bus_bytes; at += WORD)
        if (static_cast<uint64_t>(strobe >> at)) last_writes_[(offset + at) / WORD] = cycle;
}

Memory::Memory(const MemorySettings& settings, MemoryImage& image, unsigned bus_bytes,
               Interleave place)
    : settings_{settings},
      image_{image},
      bus_bytes_{bus_bytes},
      size_{static_cast<unsigned>(__builtin_ctz(bus_bytes))},
      place_{place},
      read_latency_{settings.read_latency + place.channel * settings.skew},
      write_latency_{settings.write_latency + place.channel * settings.skew},
      name_{place.channels > 1 ? text("m_axi_%u", place.channel) : "m_axi"},
      stall_ar_{settings.stalls, settings.stall_seed, STREAMS * place.channel},
      stall_aw_{settings.stalls, settings.stall_seed, STREAMS * place.channel + 1},
      stall_w_{settings.stalls, settings.stall_seed, STREAMS * place.channel + 2},
      stall_r_{settings.stalls, settings.stall_seed, STREAMS * place.channel + 3},
      stall_b_{settings.stalls, settings.stall_seed, STREAMS * place.channel + 4},
      random_{settings.stall_seed * 64 + STREAMS * place.channel + 5} {
    if (settings.read_latency < 1 || settings.write_latency < 1)
        throw Stop{"job", "latency: must be at least 1"};
}

void Memory::reset() {
    out_ = MemoryPins{};
    before_ = MasterPins{};
    reads_.clear();
    writes_.clear();
    early_.clear();
    late_.clear();
    answers_.clear();
}

void Memory::check_reset(uint64_t cycle, const MasterPins& master) const {
    if (master.ar.valid || master.aw.valid || master.wvalid)
        violation(cycle, name_ + text(": %s is 1 in reset", master.ar.valid   ? "arvalid"
                                                            : master.aw.valid ? "awvalid"
                                                                              : "wvalid"));
}

bool Memory::permitted(const std::vector<Range>& windows, uint64_t address, uint64_t bytes) const {
    if (windows.empty()) return true;
    for (const Range& window : windows)
        if (window.holds(address, bytes)) return true;
    return false;
}

Response Memory::respond(bool write, uint64_t address) const {
    for (const InjectedError& error : settings_.errors)
        if (error.write == write && error.range.meets(address, bus_bytes_)) return error.response;
    return image_.holds(address, bus_bytes_) ? OKAY : DECERR;
}

void Memory::check_address(uint64_t cycle, const char* name, const AddressChannel& c) const {
    const auto where = name_ + text(": %saddr = 0x%llx: ", name, wide(c.address));
    if (c.size != size_)
        violation(cycle, where + text("%ssize = %u: must be %u", name, c.size, size_));
    if (c.burst != INCR)
        violation(cycle, where + text("%sburst = %u: must be INCR (1)", name, c.burst));
    if (c.address % bus_bytes_)
        violation(cycle, where + text("must be a multiple of the bus's %u bytes", bus_bytes_));
    const uint64_t bytes = static_cast<uint64_t>(c.length + 1) * bus_bytes_;
    if (c.address % BOUNDARY + bytes > BOUNDARY)
        violation(cycle, where + text("%u beats cross a 4 KiB boundary", c.length + 1));
}

void Memory::check_stable(uint64_t cycle, const MasterPins& now) {
    const MasterPins& was = before_;
    if (was.ar.valid && !(now.ar == was.ar))
        violation(cycle, name_ + (now.ar.valid ? ": AR changed before arready"
                                               : ": arvalid was withdrawn before arready"));
    if (was.aw.valid && !(now.aw == was.aw))
        violation(cycle, name_ + (now.aw.valid ? ": AW changed before awready"
                                               : ": awvalid was withdrawn before awready"));
    if (was.wvalid) {
        if (!now.wvalid) violation(cycle, name_ + ": wvalid was withdrawn before wready");
        if (now.wlast != was.wlast || now.wstrb != was.wstrb
            || std::memcmp(now.wdata, was.wdata, bus_bytes_) != 0)
            violation(cycle, name_ + ": W changed before wready");
    }
}

bool Memory::step(uint64_t cycle, const MasterPins& master) {
    check_stable(cycle, master);
    const bool ar = master.ar.valid && out_.arready, aw = master.aw.valid && out_.awready;
    const bool w = master.wvalid && out_.wready;
    const bool r = out_.rvalid && master.rready, b = out_.bvalid && master.bready;
    before_.ar.valid = before_.aw.valid = before_.wvalid = false;
    if (master.ar.valid && !ar) before_.ar = master.ar;
    if (master.aw.valid && !aw) before_.aw = master.aw;
    if (master.wvalid && !w) {
        before_.wvalid = true;
        before_.wlast = master.wlast;
        before_.wstrb = master.wstrb;
        std::memcpy(before_.wdata, master.wdata, bus_bytes_);
    }

    if (ar) {
        check_address(cycle, "ar", master.ar);
        const unsigned beats = master.ar.length + 1;
        const uint64_t first = linear(master.ar.address);
        const uint64_t last = linear(master.ar.address + uint64_t{beats - 1} * bus_bytes_);
        if (!permitted(settings_.read_windows, first, last - first + bus_bytes_))
            violation(cycle,
                      name_ + text(": read of %u bytes at 0x%llx: outside the read windows",
                                   beats * bus_bytes_, wide(first)));
        reads_.push_back({master.ar.address, beats, 0, cycle + read_latency_, OKAY});
        ++counts_.read_bursts;
    }
    if (aw) {
        check_address(cycle, "aw", master.aw);
        writes_.push_back({master.aw.address, master.aw.length + 1, 0, 0, OKAY});
        ++counts_.write_bursts;
        while (!early_.empty() && !writes_.empty()) {
            const Beat beat = early_.front();
            early_.pop_front();
            take_beat(cycle, beat);
        }
    }
    if (w) {
        Beat beat;
        beat.strobe = master.wstrb;
        beat.last = master.wlast;
        std::memcpy(beat.data, master.wdata, bus_bytes_);
        ++counts_.write_beats;
        if (writes_.empty())
            early_.push_back(beat);
        else
            take_beat(cycle, beat);
    }
    next_read(cycle, r);
    next_write(cycle, master, b);
    return ar || aw || w || r || b;
}

// One beat of the oldest burst whose data is not complete.
void Memory::take_beat(uint64_t cycle, const Beat& beat) {
    Burst& burst = writes_.front();
    const uint64_t address = linear(burst.address + uint64_t{burst.beat} * bus_bytes_);
    const bool last = ++burst.beat == burst.beats;
    if (beat.last != last)
        violation(cycle, name_ + text(": wlast is %d in beat %u of %u of the burst at 0x%llx",
                                      beat.last, burst.beat, burst.beats, wide(burst.address)));
    if (beat.strobe & ~all_strobes(bus_bytes_)) violation(cycle, name_ + ": wstrb beyond the bus");
    if (beat.strobe) {
        // From the first byte written to the last.
        const unsigned low = lowest(beat.strobe);
        const unsigned high = highest(beat.strobe);
        if (!permitted(settings_.write_windows, address + low, high - low + 1))
            violation(cycle, name_ + text(": write of 0x%llx .. 0x%llx: outside the write windows",
                                          wide(address + low), wide(address + high)));
        const Response response = respond(true, address);
        if (response != OKAY && burst.response == OKAY) burst.response = response;
        if (response == OKAY) {
            counts_.written_bytes += count(beat.strobe);
            if (settings_.write_late)
                late_.emplace_back(address, beat);
            else
                image_.write(cycle, address, beat.data, beat.strobe, bus_bytes_);
        }
    }
    if (last) {
        answers_.push_back({burst.response, cycle + write_latency_, std::move(late_)});
        late_.clear();
        writes_.pop_front();
    }
}

// The pins of AR and R in cycle + 1.
void Memory::next_read(uint64_t cycle, bool moved) {
    if (moved) {
        ++counts_.read_beats;
        if (++reads_.front().beat == reads_.front().beats) reads_.pop_front();
    }
    const bool stalled = stall_r_.stalled();
    if (moved || !out_.rvalid) {
        out_.rvalid = !reads_.empty() && reads_.front().ready_cycle <= cycle + 1 && !stalled;
        if (out_.rvalid) {
            const Burst& burst = reads_.front();
            const uint64_t address = linear(burst.address + uint64_t{burst.beat} * bus_bytes_);
            const Response response = respond(false, address);
            out_.rresp = response;
            out_.rlast = burst.beat + 1 == burst.beats;
            if (response == OKAY)
                std::memcpy(out_.rdata, image_.at(address), bus_bytes_);
            else
                std::memset(out_.rdata, 0xEE, bus_bytes_);
        } else if (settings_.stalls) {
            // Whatever stands there must not matter.
            const uint64_t word = random_.next();
            for (unsigned byte = 0; byte < bus_bytes_; byte += 8)
                std::memcpy(out_.rdata + byte, &word, 8);
            out_.rresp = word & 3;
            out_.rlast = word >> 2 & 1;
        }
    }
    const unsigned limit = settings_.read_outstanding;
    out_.arready = !stall_ar_.stalled() && (limit == 0 || reads_.size() < limit);
}

// The pins of AW, W and B in cycle + 1.
void Memory::next_write(uint64_t cycle, const MasterPins& master, bool moved) {
    if (moved) answers_.pop_front();
    const bool stalled = stall_b_.stalled();
    if (moved || !out_.bvalid) {
        out_.bvalid = !answers_.empty() && answers_.front().ready_cycle <= cycle + 1 && !stalled;
        if (out_.bvalid) {
            for (const auto& [address, beat] : answers_.front().late)
                image_.write(cycle, address, beat.data, beat.strobe, bus_bytes_);
            out_.bresp = answers_.front().response;
        }
    }
    // A slave may wait for the other channel's valid, either way (AXI4, A3.3.1).
    if (settings_.stalls && random_.below(128) == 0) order_ = random_.below(3);
    const bool data_seen = master.wvalid || !early_.empty() || !writes_.empty();
    const bool address_seen = master.aw.valid || !writes_.empty();
    const unsigned limit = settings_.write_outstanding;
    out_.awready = !stall_aw_.stalled() && (order_ != 1 || data_seen)
                   && (limit == 0 || writes_.size() + answers_.size() < limit);
    out_.wready = !stall_w_.stalled() && (order_ != 2 || address_seen)
                  && early_.size() < EARLY_BEATS;
}
