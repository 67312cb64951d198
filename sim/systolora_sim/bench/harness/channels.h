// All channels of the memory, over one image.
#ifndef SYSTOLORA_HARNESS_CHANNELS_H
#define SYSTOLORA_HARNESS_CHANNELS_H

#include <deque>
#include <vector>

#include "memory.h"

class Channels {
public:
    // `count` channels of `bus_bytes` each; takes the image out of the settings.
    Channels(MemorySettings settings, unsigned count, unsigned bus_bytes);
    Channels(const Channels&) = delete;

    size_t size() const { return memories_.size(); }
    const MemoryPins& pins(size_t channel) const { return memories_[channel].pins(); }

    // As Memory's, of all channels; `masters` has one entry for each.
    bool step(uint64_t cycle, const std::vector<MasterPins>& masters);
    void reset();
    void check_reset(uint64_t cycle, const std::vector<MasterPins>& masters) const;
    bool in_read_burst() const;
    bool in_write_burst() const;
    bool idle() const;
    MemoryCounts counts() const;

    MemoryImage& image() { return image_; }

private:
    MemorySettings settings_;
    MemoryImage image_;
    std::deque<Memory> memories_;  // they stay where they are
};

#endif
