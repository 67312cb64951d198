// A job: settings, then commands in their order, from a text file; and its result as JSON.
//
// One setting or command a line; # begins a comment; numbers in C's notation; a file's name is the
// rest of its line. A LIMIT is the first address behind; 0 is 2^64.
//
//   memory BASE FILE                  the image: FILE's bytes at BASE
//   latency READ WRITE                cycles, see MemorySettings
//   skew CYCLES                       that a channel takes longer than the one before it
//   outstanding READ WRITE
//   write_late
//   stalls SEED
//   window read|write FIRST LIMIT     may come several times
//   error read|write slave|decode FIRST LIMIT
//   watchdog CYCLES
//   limit CYCLES
//   trace FIRST LIMIT FILE
//   progress                          lines `cycle N` on stdout
//
//   write OFFSET VALUE [STROBE]       of a register
//   read OFFSET
//   wait CYCLES
//   wait_irq CYCLES                   at most
//   wait_burst read|write CYCLES      until a burst is half way, that many cycles at most
//   reset CYCLES
//   load ADDRESS FILE                 FILE's bytes into the image
//   dump FILE                         the image
//   dump_writes FILE                  uint64 per 64 bytes of the image: cycle of the last write
//   driver POLLS ADDRESS LENGTH READ_BASE READ_SIZE WRITE_BASE WRITE_SIZE RUNS WORD_BASE STEP
//                                     one program by the C driver (in builds that have it)
#ifndef SYSTOLORA_HARNESS_SCRIPT_H
#define SYSTOLORA_HARNESS_SCRIPT_H

#include <string>
#include <vector>

#include "lite.h"
#include "memory.h"
#include "simulation.h"

struct Command {
    std::string name, file, way;
    std::vector<uint64_t> numbers;
};

struct Job {
    MemorySettings memory;
    SimulationSettings simulation;
    std::vector<Command> commands;
};

// Reads a job; throws Stop "job" with the line and what is wrong with it.
Job read_job(const std::string& path);

// Runs it and writes the result, whatever happens; returns whether it could be written.
bool run_job(Job job, const std::string& result);

#endif
