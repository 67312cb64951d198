// The design, its clock, and the parts around it.
#ifndef SYSTOLORA_HARNESS_SIMULATION_H
#define SYSTOLORA_HARNESS_SIMULATION_H

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "channels.h"
#include "lite.h"

class Vtop;
class VerilatedContext;
class Trace;

struct SimulationSettings {
    // Cycles without a transfer on m_axi after which a wait gives up; 0: never.
    uint64_t watchdog = 200000;
    // Cycles of the whole run at most; 0: any number.
    uint64_t limit = 0;
    // Waveform of the cycles trace_first .. trace_limit-1; none without a file.
    std::string trace;
    uint64_t trace_first = 0, trace_limit = ~0ULL;
    bool progress = false;
};

class Simulation {
public:
    Simulation(SimulationSettings settings, Channels& memory, LiteMaster& lite);
    ~Simulation();

    // One clock cycle. Throws Stop.
    void cycle();
    // A reset of design, memory and master, of that many cycles, in the middle of anything.
    void reset(uint64_t cycles);

    // Accesses to registers; each returns when it is answered.
    void write(uint32_t offset, uint32_t value, unsigned strobe = 0xF);
    void read(uint32_t offset);

    // Cycles until the interrupt is there, `most` at most: Stop "timeout" then, or "watchdog".
    void wait_irq(uint64_t most);

    // Whether a bus without transfers ends the run from now on.
    void watch(bool on) {
        watching_ = on;
        idle_ = 0;
    }

    uint64_t now() const { return cycle_; }
    bool irq() const { return irq_; }
    // Cycle in which the interrupt came last.
    uint64_t irq_rise() const { return irq_rise_; }

private:
    void tick(bool reset);
    void report();

    SimulationSettings settings_;
    Channels& memory_;
    LiteMaster& lite_;
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vtop> top_;
    std::unique_ptr<Trace> trace_;
    std::vector<MasterPins> masters_;  // of each channel
    LiteSlavePins slave_;
    uint64_t cycle_ = 0, idle_ = 0, irq_rise_ = 0;
    bool irq_ = false, watching_ = false;
    std::chrono::steady_clock::time_point reported_;
};

#endif
