#include "driver.h"

#ifdef SYSTOLORA_DRIVER

#include <exception>

#include "systolora.h"

namespace {

// What the driver's two functions reach. An end of the run must not pass through C: it is kept,
// and until the driver has returned every access gives 0.
struct Bus {
    Simulation& simulation;
    LiteMaster& lite;
    DriverResult result;
    std::exception_ptr stopped;
};

uint32_t read32(void* context, uint32_t offset) {
    Bus& bus = *static_cast<Bus*>(context);
    if (bus.stopped) return 0;
    try {
        bus.simulation.read(offset);
    } catch (const Stop&) {
        bus.stopped = std::current_exception();
        return 0;
    }
    bus.result.refused += bus.lite.response() != OKAY;
    return bus.lite.value();
}

void write32(void* context, uint32_t offset, uint32_t value) {
    Bus& bus = *static_cast<Bus*>(context);
    if (bus.stopped) return;
    try {
        bus.simulation.write(offset, value);
    } catch (const Stop&) {
        bus.stopped = std::current_exception();
        return;
    }
    bus.result.refused += bus.lite.response() != OKAY;
    if (offset == SYSTOLORA_REG_CONTROL) bus.result.started = bus.lite.accepted();
}

// The calls of one program, in the driver's own order; fills `result`.
void call_driver(const uint64_t* fields, Bus& bus, DriverResult& result) {
    struct systolora device;
    result.result = systolora_init(&device, read32, write32, &bus);
    if (result.result != SYSTOLORA_OK) return;
    systolora_irq_enable(&device,
                         SYSTOLORA_IRQ_MASK_DONE_MASK | SYSTOLORA_IRQ_MASK_ERROR_MASK);
    struct systolora_run run;
    run.program = fields[DriverProgram::ADDRESS];
    run.length = static_cast<uint32_t>(fields[DriverProgram::LENGTH]);
    run.runs = static_cast<uint32_t>(fields[DriverProgram::RUNS]);
    run.word_base = static_cast<uint32_t>(fields[DriverProgram::WORD_BASE]);
    run.step = static_cast<uint32_t>(fields[DriverProgram::STEP]);
    run.read = {fields[DriverProgram::READ_BASE], fields[DriverProgram::READ_SIZE]};
    run.write = {fields[DriverProgram::WRITE_BASE], fields[DriverProgram::WRITE_SIZE]};
    result.result = systolora_submit(&device, &run);
    result.accepted = result.result == SYSTOLORA_OK;
    if (!result.accepted) return;
    bus.simulation.watch(true);
    const uint64_t polls = fields[DriverProgram::POLLS];
    result.result = systolora_wait(&device, polls >> 32 ? ~0u : static_cast<uint32_t>(polls));
    struct systolora_error error;
    systolora_error(&device, &error);
    result.fault = error.code;
    result.index = error.index;
    struct systolora_counters counters;
    systolora_counters(&device, &counters);
    result.counted = counters.cycles;
}

}  // namespace

DriverResult run_driver(const DriverProgram& program, Simulation& simulation, LiteMaster& lite) {
    Bus bus{simulation, lite, {}, nullptr};
    call_driver(program.fields, bus, bus.result);
    simulation.watch(false);
    if (bus.stopped) std::rethrow_exception(bus.stopped);
    return bus.result;
}

#else

DriverResult run_driver(const DriverProgram&, Simulation&, LiteMaster&) {
    throw Stop{"job", "driver: this build of the harness is without it"};
}

#endif
