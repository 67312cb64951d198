// Compression into LZ4's block format, as much of it as Verilator's writer of FST files calls, so
// that a trace needs no package for it. Greedy, with one remembered place per hash of four bytes.
//
// A block is a row of sequences: a byte with the number of literals (high half) and the length of
// the match less 4 (low half), each continued in bytes of 255 and a last one where the half is 15;
// the literals; the match's distance in two bytes. The last sequence ends with its literals: the
// last 5 bytes are literals, and no match begins in the last 12.
#ifndef SYSTOLORA_HARNESS_LZ4_H
#define SYSTOLORA_HARNESS_LZ4_H

#include <cstdint>
#include <cstring>
#include <vector>

inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

namespace systolora_lz4 {

constexpr int LEAST_MATCH = 4, LAST_LITERALS = 5, LAST_MATCH = 12, DISTANCE_MAX = 65535;
constexpr int HASH_BITS = 14;

inline uint32_t four(const uint8_t* place) {
    uint32_t word;
    std::memcpy(&word, place, 4);
    return word;
}

inline uint8_t* put_length(uint8_t* out, int length) {
    for (length -= 15; length >= 255; length -= 255) *out++ = 255;
    *out++ = static_cast<uint8_t>(length);
    return out;
}

// A sequence; match 0: the last one.
inline uint8_t* put_sequence(uint8_t* out, const uint8_t* literals, int count, int match,
                             int distance) {
    const int more = match ? match - LEAST_MATCH : 0;
    *out++ = static_cast<uint8_t>((count < 15 ? count : 15) << 4 | (more < 15 ? more : 15));
    if (count >= 15) out = put_length(out, count);
    if (count) std::memcpy(out, literals, static_cast<size_t>(count));
    out += count;
    if (match) {
        *out++ = static_cast<uint8_t>(distance);
        *out++ = static_cast<uint8_t>(distance >> 8);
        if (more >= 15) out = put_length(out, more);
    }
    return out;
}

}  // namespace systolora_lz4

// The block's bytes; 0 where `capacity` is below LZ4_compressBound(size).
inline int LZ4_compress_default(const char* source, char* target, int size, int capacity) {
    using namespace systolora_lz4;
    if (size < 0 || capacity < LZ4_compressBound(size)) return 0;
    const uint8_t* const data = reinterpret_cast<const uint8_t*>(source);
    uint8_t* const begin = reinterpret_cast<uint8_t*>(target);
    uint8_t* out = begin;
    std::vector<int> places(1 << HASH_BITS, -1);
    int done = 0;
    for (int here = 0; here + LAST_MATCH <= size;) {
        int& place = places[four(data + here) * 2654435769U >> (32 - HASH_BITS)];
        const int before = place;
        place = here;
        if (before < 0 || here - before > DISTANCE_MAX || four(data + before) != four(data + here)) {
            ++here;
            continue;
        }
        int match = LEAST_MATCH;
        while (here + match < size - LAST_LITERALS && data[before + match] == data[here + match])
            ++match;
        out = put_sequence(out, data + done, here - done, match, here - before);
        done = here += match;
    }
    out = put_sequence(out, data + done, size - done, 0, 0);
    return static_cast<int>(out - begin);
}

#endif
