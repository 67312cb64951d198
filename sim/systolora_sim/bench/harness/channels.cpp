#include "channels.h"

#include <algorithm>

Channels::Channels(MemorySettings settings, unsigned count, unsigned bus_bytes)
    : settings_{std::move(settings)}, image_{settings_.base, std::move(settings_.image)} {
    for (unsigned channel = 0; channel < count; ++channel)
        memories_.emplace_back(settings_, image_, bus_bytes, Interleave{channel, count});
}

bool Channels::step(uint64_t cycle, const std::vector<MasterPins>& masters) {
    bool moved = false;
    for (size_t channel = 0; channel < size(); ++channel)
        if (memories_[channel].step(cycle, masters[channel])) moved = true;
    return moved;
}

void Channels::reset() {
    for (Memory& memory : memories_) memory.reset();
}

void Channels::check_reset(uint64_t cycle, const std::vector<MasterPins>& masters) const {
    for (size_t channel = 0; channel < size(); ++channel)
        memories_[channel].check_reset(cycle, masters[channel]);
}

bool Channels::in_read_burst() const {
    return std::any_of(memories_.begin(), memories_.end(),
                       [](const Memory& memory) { return memory.in_read_burst(); });
}

bool Channels::in_write_burst() const {
    return std::any_of(memories_.begin(), memories_.end(),
                       [](const Memory& memory) { return memory.in_write_burst(); });
}

bool Channels::idle() const {
    return std::all_of(memories_.begin(), memories_.end(),
                       [](const Memory& memory) { return memory.idle(); });
}

MemoryCounts Channels::counts() const {
    MemoryCounts sum;
    for (const Memory& memory : memories_) {
        const MemoryCounts& counts = memory.counts();
        sum.read_bursts += counts.read_bursts;
        sum.read_beats += counts.read_beats;
        sum.write_bursts += counts.write_bursts;
        sum.write_beats += counts.write_beats;
        sum.written_bytes += counts.written_bytes;
    }
    return sum;
}
