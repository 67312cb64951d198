// What all parts share: the end of a run, and random numbers.
#ifndef SYSTOLORA_HARNESS_COMMON_H
#define SYSTOLORA_HARNESS_COMMON_H

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

// Thrown to end a run before its script does. status is for programs, message for people.
struct Stop {
    std::string status, message;
};

// printf into a string.
__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
    char buffer[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

// For %llu.
inline unsigned long long wide(uint64_t value) { return value; }

// A rule of AXI that the design broke.
[[noreturn]] inline void violation(uint64_t cycle, const std::string& what) {
    throw Stop{"violation", text("cycle %llu: ", wide(cycle)) + what};
}

// Uniform 64-bit words from a seed: a counter whose bits are mixed.
class Random {
public:
    explicit Random(uint64_t seed)
        : state_{seed * 0x2545F4914F6CDD1DULL + 0x632BE59BD9B4E019ULL} {}

    uint64_t next() {
        state_ += 0x9E3779B97F4A7C15ULL;
        uint64_t word = state_;
        word = (word ^ (word >> 32)) * 0xD6E8FEB86659FD93ULL;
        word = (word ^ (word >> 29)) * 0xD6E8FEB86659FD93ULL;
        return word ^ (word >> 32);
    }

    // 0 .. bound-1
    uint64_t below(uint64_t bound) { return next() % bound; }

private:
    uint64_t state_;
};

// Stalls of one channel: now and then another probability, rarely a stall of hundreds of cycles.
class Stalls {
public:
    Stalls(bool enabled, uint64_t seed, unsigned channel)
        : enabled_{enabled}, random_{seed * 64 + channel} {}

    // Whether the channel rests in the next cycle; to be asked once a cycle.
    bool stalled() {
        if (!enabled_) return false;
        if (rest_ > 0) {
            --rest_;
            return true;
        }
        if (left_ == 0) {
            static constexpr unsigned PARTS[] = {0, 0, 64, 128, 230};
            left_ = 20 + random_.below(100);
            part_ = PARTS[random_.below(5)];
        }
        --left_;
        const uint64_t word = random_.next();
        if ((word & 0x1FFF) == 0) rest_ = 200 + (word >> 16) % 600;
        return ((word >> 40) & 0xFF) < part_;
    }

private:
    bool enabled_;
    Random random_;
    uint64_t rest_ = 0, left_ = 0;
    unsigned part_ = 0;
};

#endif
