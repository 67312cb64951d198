// The C driver as a master of the registers.
#ifndef SYSTOLORA_HARNESS_DRIVER_H
#define SYSTOLORA_HARNESS_DRIVER_H

#include <cstdint>

#include "simulation.h"

// In the order of the command `driver`.
struct DriverProgram {
    enum Field {
        POLLS, ADDRESS, LENGTH, READ_BASE, READ_SIZE, WRITE_BASE, WRITE_SIZE, RUNS, WORD_BASE, STEP,
        FIELDS
    };
    uint64_t fields[FIELDS] = {};
};

struct DriverResult {
    bool accepted = false;  // the driver submitted the program
    int result = 0;         // of the driver's call that decided
    uint64_t fault = 0, index = 0;
    uint64_t counted = 0;   // cycles, as the driver reports them
    uint64_t started = 0;   // cycle in which the write that starts the run was complete
    uint64_t refused = 0;   // accesses that the design answered with an error
};

// Finds the device, submits the program and waits for its end, all through the driver.
// Throws Stop as the simulation does, or "job" in a build without the driver.
DriverResult run_driver(const DriverProgram& program, Simulation& simulation, LiteMaster& lite);

#endif
