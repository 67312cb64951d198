// A memory behind AXI4, one channel of it: every rule of the master's side checked.
#ifndef SYSTOLORA_HARNESS_MEMORY_H
#define SYSTOLORA_HARNESS_MEMORY_H

#include <deque>
#include <string>
#include <vector>

#include "common.h"
#include "pins.h"

// `size` bytes from `first` on; they may end with the address space.
struct Range {
    uint64_t first, size;

    bool holds(uint64_t address, uint64_t bytes) const {
        return address >= first && bytes <= size && address - first <= size - bytes;
    }
    bool meets(uint64_t address, uint64_t bytes) const {
        return address >= first ? address - first < size : first - address < bytes;
    }
};

struct InjectedError {
    bool write;
    Response response;
    Range range;
};

struct MemorySettings {
    uint64_t base = 0;
    std::vector<uint8_t> image;
    // Cycles from the address to the first beat, and from the last beat written to its response.
    unsigned read_latency = 40, write_latency = 40;
    // Cycles that a channel takes longer than the one before it.
    unsigned skew = 0;
    // Bursts accepted and not finished, at most; 0: any number.
    unsigned read_outstanding = 0, write_outstanding = 0;
    // Data is written when it comes, or only when its response goes out.
    bool write_late = false;
    bool stalls = false;
    uint64_t stall_seed = 0;
    // Where the master may read and write; everywhere if there are none.
    std::vector<Range> read_windows, write_windows;
    std::vector<InjectedError> errors;
};

struct MemoryCounts {
    uint64_t read_bursts = 0, read_beats = 0, write_bursts = 0, write_beats = 0, written_bytes = 0;
};

// What all channels have in common.
class MemoryImage {
public:
    // Bytes whose last write is recorded together.
    static constexpr unsigned WORD = 64;

    MemoryImage(uint64_t base, std::vector<uint8_t> bytes);

    const std::vector<uint8_t>& bytes() const { return bytes_; }
    bool holds(uint64_t address, uint64_t size) const {
        return Range{base_, bytes_.size()}.holds(address, size);
    }
    const uint8_t* at(uint64_t address) const { return &bytes_[address - base_]; }
    // Replaces bytes, as a host would; returns whether they are inside it.
    bool put(uint64_t address, const std::vector<uint8_t>& bytes);
    // Writes the bytes of a bus word that have their strobe.
    void write(uint64_t cycle, uint64_t address, const uint8_t* data, Strobe strobe,
               unsigned bus_bytes);
    // Cycle of the last write to each WORD; 0: none.
    const std::vector<uint64_t>& last_writes() const { return last_writes_; }

private:
    uint64_t base_;
    std::vector<uint8_t> bytes_;
    std::vector<uint64_t> last_writes_;
};

// Where a channel's words lie in the image: word w of channel c of n is word w * n + c.
struct Interleave {
    unsigned channel = 0, channels = 1;
};

class Memory {
public:
    Memory(const MemorySettings& settings, MemoryImage& image, unsigned bus_bytes,
           Interleave place);

    // The pins to show in the coming cycle.
    const MemoryPins& pins() const { return out_; }

    // Takes what moved at the end of `cycle`, and decides on the pins of the next one.
    // Returns whether anything moved. Throws Stop where a rule is broken.
    bool step(uint64_t cycle, const MasterPins& master);

    // A reset of master and memory: whatever is under way is forgotten, the image stays.
    void reset();

    // Checks what the master drives while it is in reset.
    void check_reset(uint64_t cycle, const MasterPins& master) const;

    // Whether a burst has had some of its beats, and not all.
    bool in_read_burst() const { return !reads_.empty() && reads_.front().beat > 0; }
    bool in_write_burst() const { return !writes_.empty() && writes_.front().beat > 0; }
    bool idle() const {
        return reads_.empty() && writes_.empty() && early_.empty() && answers_.empty();
    }
    const MemoryCounts& counts() const { return counts_; }

private:
    struct Burst {
        uint64_t address;
        unsigned beats, beat;
        uint64_t ready_cycle;
        Response response;
    };
    struct Beat {
        Strobe strobe;
        bool last;
        uint8_t data[MAX_BUS_BYTES];
    };
    struct Answer {
        Response response;
        uint64_t ready_cycle;
        std::vector<std::pair<uint64_t, Beat>> late;
    };

    void check_stable(uint64_t cycle, const MasterPins& master);
    void check_address(uint64_t cycle, const char* name, const AddressChannel& channel) const;
    bool permitted(const std::vector<Range>& windows, uint64_t address, uint64_t bytes) const;
    Response respond(bool write, uint64_t address) const;
    void take_beat(uint64_t cycle, const Beat& beat);
    // Address in the image of a word of this channel.
    uint64_t linear(uint64_t address) const {
        return address / bus_bytes_ * (bus_bytes_ * place_.channels) + place_.channel * bus_bytes_;
    }
    void next_read(uint64_t cycle, bool moved);
    void next_write(uint64_t cycle, const MasterPins& master, bool moved);

    const MemorySettings& settings_;
    MemoryImage& image_;
    unsigned bus_bytes_, size_;
    Interleave place_;
    unsigned read_latency_, write_latency_;
    std::string name_;  // of the port
    MemoryPins out_;
    MasterPins before_;  // what had to stay: valid only where it was not taken
    std::deque<Burst> reads_, writes_;
    std::deque<Beat> early_;  // data whose address has not come
    std::vector<std::pair<uint64_t, Beat>> late_;  // of the burst being written
    std::deque<Answer> answers_;
    MemoryCounts counts_;
    Stalls stall_ar_, stall_aw_, stall_w_, stall_r_, stall_b_;
    Random random_;
    unsigned order_ = 0;  // which of AW and W waits for the other
};

#endif
