#include "simulation.h"

#include <csignal>
#include <cstdio>

#include "Vtop.h"
#include "design.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using TraceFile = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using TraceFile = VerilatedVcdC;
#endif

namespace {

// Cycles in which a register access must be answered; stalls of a channel are below 1000.
constexpr uint64_t LITE_TIMEOUT = 20000;
// Cycles between looks at the wall clock.
constexpr uint64_t REPORT_CYCLES = 512;
constexpr auto REPORT_TIME = std::chrono::milliseconds(200);
// Time units of a cycle in a trace; the clock rises in its middle.
constexpr uint64_t PERIOD = 10;

volatile std::sig_atomic_t interrupted = 0;

}  // namespace

#if VM_TRACE
class Trace {
public:
    Trace(Vtop& top, const std::string& name) {
        top.trace(&file_, 99);
        file_.open(name.c_str());
        if (!file_.isOpen()) throw Stop{"job", "trace: cannot be written"};
    }
    ~Trace() { file_.close(); }
    void dump(uint64_t time) { file_.dump(time); }

private:
    TraceFile file_;
};
#else
class Trace {
public:
    Trace(Vtop&, const std::string&) { throw Stop{"job", "trace: this build has none"}; }
    void dump(uint64_t) {}
};
#endif

Simulation::Simulation(SimulationSettings settings, Channels& memory, LiteMaster& lite)
    : settings_{std::move(settings)}, memory_{memory}, lite_{lite}, masters_(memory.size()) {
    context_ = std::make_unique<VerilatedContext>();
    if (!settings_.trace.empty()) context_->traceEverOn(true);
    top_ = std::make_unique<Vtop>(context_.get());
    reported_ = std::chrono::steady_clock::now();
    for (const int number : {SIGINT, SIGTERM})
        std::signal(number, [](int) { interrupted = 1; });
}

Simulation::~Simulation() {
    trace_.reset();
    top_->final();
}

void Simulation::tick(bool reset) {
    if (!settings_.trace.empty()) {
        if (cycle_ == settings_.trace_first) trace_ = std::make_unique<Trace>(*top_, settings_.trace);
        if (cycle_ == settings_.trace_limit) trace_.reset();
    }
    // Inputs change while the clock is low and outputs are read before it rises: a pair of calls
    // is a cycle, whatever is combinational in the design.
    top_->clk = 0;
    top_->rst = reset;
    drive(*top_, memory_, lite_.pins());
    top_->eval();
    if (trace_) trace_->dump(PERIOD * cycle_);
    sample(*top_, masters_, slave_);
    if (top_->irq && !irq_) irq_rise_ = cycle_;
    irq_ = top_->irq;
    top_->clk = 1;
    top_->eval();
    if (trace_) trace_->dump(PERIOD * cycle_ + PERIOD / 2);
}

void Simulation::cycle() {
    tick(false);
    const bool moved = memory_.step(cycle_, masters_);
    lite_.step(cycle_, slave_);
    ++cycle_;
    idle_ = moved ? 0 : idle_ + 1;
    if (cycle_ % REPORT_CYCLES == 0) report();
    if (watching_ && settings_.watchdog && idle_ >= settings_.watchdog)
        throw Stop{"watchdog", text("cycle %llu: no transfer on m_axi for %llu cycles", wide(cycle_),
                                    wide(idle_))};
    if (settings_.limit && cycle_ >= settings_.limit)
        throw Stop{"limit", text("the limit of %llu cycles is reached", wide(settings_.limit))};
    if (interrupted) throw Stop{"interrupted", text("cycle %llu: interrupted", wide(cycle_))};
}

void Simulation::report() {
    if (!settings_.progress) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - reported_ < REPORT_TIME) return;
    reported_ = now;
    // Into a pipe: if nobody reads it any more, this ends the process.
    std::printf("cycle %llu\n", wide(cycle_));
    std::fflush(stdout);
}

void Simulation::reset(uint64_t cycles) {
    memory_.reset();
    lite_.reset();
    for (uint64_t count = 0; count < cycles; ++count) {
        tick(true);
        // The first of them is what the design did before it saw the reset.
        if (count > 0) {
            memory_.check_reset(cycle_, masters_);
            lite_.check_reset(cycle_, slave_);
        }
        ++cycle_;
    }
    idle_ = 0;
}

void Simulation::write(uint32_t offset, uint32_t value, unsigned strobe) {
    lite_.begin_write(offset, value, strobe);
    for (uint64_t count = 0; !lite_.done(); ++count) {
        if (count >= LITE_TIMEOUT)
            throw Stop{"watchdog", text("cycle %llu: s_axil: the write of register 0x%03x is not "
                                        "answered", wide(cycle_), offset)};
        cycle();
    }
}

void Simulation::read(uint32_t offset) {
    lite_.begin_read(offset);
    for (uint64_t count = 0; !lite_.done(); ++count) {
        if (count >= LITE_TIMEOUT)
            throw Stop{"watchdog", text("cycle %llu: s_axil: the read of register 0x%03x is not "
                                        "answered", wide(cycle_), offset)};
        cycle();
    }
}

void Simulation::wait_irq(uint64_t most) {
    watch(true);
    uint64_t count = 0;
    do {
        if (count++ >= most)
            throw Stop{"timeout", text("cycle %llu: no interrupt in %llu cycles", wide(cycle_),
                                       wide(most))};
        cycle();
    } while (!irq_);
    watch(false);
}
