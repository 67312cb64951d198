#include "script.h"

#include <fstream>
#include <memory>
#include <sstream>

#include "design.h"
#include "driver.h"

namespace {

// Cycles of the reset before the first command.
constexpr uint64_t FIRST_RESET = 4;

std::vector<uint8_t> read_bytes(const std::string& path) {
    std::ifstream file{path, std::ios::binary | std::ios::ate};
    if (!file) throw Stop{"job", path + ": cannot be read"};
    std::vector<uint8_t> bytes(static_cast<size_t>(file.tellg()));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw Stop{"job", path + ": cannot be read"};
    return bytes;
}

void write_bytes(const std::string& path, const void* data, size_t size) {
    std::ofstream file{path, std::ios::binary};
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    file.close();
    if (!file) throw Stop{"job", path + ": cannot be written"};
}

// What follows a command's name: `way` of the bus or not, numbers, file or not.
struct Form {
    const char* name;
    bool way;
    unsigned least, most;
    bool file;
};

constexpr Form COMMANDS[] = {
    {"write", false, 2, 3, false}, {"read", false, 1, 1, false},
    {"wait", false, 1, 1, false},  {"wait_irq", false, 1, 1, false},
    {"wait_burst", true, 1, 1, false}, {"reset", false, 1, 1, false},
    {"load", false, 1, 1, true},   {"dump", false, 0, 0, true},
    {"dump_writes", false, 0, 0, true}, {"driver", false, 10, 10, false},
};

class Line {
public:
    explicit Line(const std::string& line) : stream_{line} {}

    bool empty() { return (stream_ >> std::ws).eof(); }
    std::string word() {
        std::string result;
        if (!(stream_ >> result)) throw Stop{"job", "a word is missing"};
        return result;
    }
    uint64_t number() {
        const std::string digits = word();
        size_t used = 0;
        uint64_t value = 0;
        try {
            value = std::stoull(digits, &used, 0);
        } catch (const std::exception&) {
        }
        if (used != digits.size() || digits[0] == '-')
            throw Stop{"job", digits + ": must be a number"};
        return value;
    }
    std::string rest() {
        std::string result;
        std::getline(stream_ >> std::ws, result);
        if (result.empty()) throw Stop{"job", "a file's name is missing"};
        return result;
    }
    // One of two words: whether it is the second.
    bool choice(const std::string& first, const std::string& second) {
        const std::string given = word();
        if (given != first && given != second)
            throw Stop{"job", given + ": must be " + first + " or " + second};
        return given == second;
    }
    Range range() {
        const uint64_t first = number(), limit = number();
        if (limit != 0 && limit < first) throw Stop{"job", "the limit is below the first address"};
        return {first, limit - first};
    }

private:
    std::istringstream stream_;
};

bool read_setting(Job& job, const std::string& name, Line& line) {
    MemorySettings& memory = job.memory;
    SimulationSettings& simulation = job.simulation;
    if (name == "memory") {
        memory.base = line.number();
        memory.image = read_bytes(line.rest());
    } else if (name == "latency") {
        memory.read_latency = static_cast<unsigned>(line.number());
        memory.write_latency = static_cast<unsigned>(line.number());
    } else if (name == "skew") {
        memory.skew = static_cast<unsigned>(line.number());
    } else if (name == "outstanding") {
        memory.read_outstanding = static_cast<unsigned>(line.number());
        memory.write_outstanding = static_cast<unsigned>(line.number());
    } else if (name == "write_late") {
        memory.write_late = true;
    } else if (name == "stalls") {
        memory.stalls = true;
        memory.stall_seed = line.number();
    } else if (name == "window") {
        auto& windows = line.choice("read", "write") ? memory.write_windows : memory.read_windows;
        windows.push_back(line.range());
    } else if (name == "error") {
        const bool write = line.choice("read", "write");
        const Response response = line.choice("slave", "decode") ? DECERR : SLVERR;
        memory.errors.push_back({write, response, line.range()});
    } else if (name == "watchdog") {
        simulation.watchdog = line.number();
    } else if (name == "limit") {
        simulation.limit = line.number();
    } else if (name == "trace") {
        simulation.trace_first = line.number();
        simulation.trace_limit = line.number();
        simulation.trace = line.rest();
    } else if (name == "progress") {
        simulation.progress = true;
    } else {
        return false;
    }
    return true;
}

bool read_command(Job& job, const std::string& name, Line& line) {
    for (const Form& form : COMMANDS) {
        if (name != form.name) continue;
        Command command;
        command.name = name;
        if (form.way) command.way = line.choice("read", "write") ? "write" : "read";
        while (command.numbers.size() < form.least
               || (command.numbers.size() < form.most && !line.empty()))
            command.numbers.push_back(line.number());
        if (form.file) command.file = line.rest();
        job.commands.push_back(std::move(command));
        return true;
    }
    return false;
}

// The JSON objects of what the commands gave.
class Events {
public:
    void begin(const Command& command) {
        open_ = true;
        text_ += text_.empty() ? "\n  " : ",\n  ";
        text_ += "{\"do\": \"" + command.name + "\"";
    }
    void add(const char* name, uint64_t value) {
        text_ += text(", \"%s\": %llu", name, wide(value));
    }
    // The end of the object that is begun, if one is.
    void end() {
        if (open_) text_ += "}";
        open_ = false;
    }
    const std::string& str() const { return text_; }

private:
    std::string text_;
    bool open_ = false;
};

// A number of a command that goes to a register.
uint32_t word(uint64_t number) {
    if (number >> 32) throw Stop{"job", text("%#llx: must fit 32 bits", wide(number))};
    return static_cast<uint32_t>(number);
}

void run_command(const Command& command, Simulation& simulation, Channels& memory, LiteMaster& lite,
                 Events& events) {
    const auto& numbers = command.numbers;
    if (command.name == "write") {
        simulation.write(word(numbers[0]), word(numbers[1]), numbers.size() > 2 ? word(numbers[2]) : 0xF);
        events.add("response", lite.response());
        events.add("accepted", lite.accepted());
    } else if (command.name == "read") {
        simulation.read(word(numbers[0]));
        events.add("response", lite.response());
        events.add("value", lite.value());
    } else if (command.name == "wait") {
        for (uint64_t count = 0; count < numbers[0]; ++count) simulation.cycle();
        events.add("irq", simulation.irq());
    } else if (command.name == "wait_irq") {
        simulation.wait_irq(numbers[0]);
    } else if (command.name == "wait_burst") {
        const bool write = command.way == "write";
        uint64_t count = 0;
        while (!(write ? memory.in_write_burst() : memory.in_read_burst())) {
            if (count++ >= numbers[0])
                throw Stop{"timeout", "no " + command.way + " burst was found half way"};
            simulation.cycle();
        }
    } else if (command.name == "reset") {
        simulation.reset(numbers[0]);
    } else if (command.name == "load") {
        const std::vector<uint8_t> bytes = read_bytes(command.file);
        if (!memory.image().put(numbers[0], bytes)) throw Stop{"job", "load: outside the image"};
    } else if (command.name == "dump") {
        const auto& bytes = memory.image().bytes();
        write_bytes(command.file, bytes.data(), bytes.size());
    } else if (command.name == "dump_writes") {
        const auto& cycles = memory.image().last_writes();
        write_bytes(command.file, cycles.data(), cycles.size() * sizeof cycles[0]);
    } else {
        DriverProgram program;
        for (unsigned field = 0; field < DriverProgram::FIELDS; ++field)
            program.fields[field] = numbers[field];
        const DriverResult result = run_driver(program, simulation, lite);
        events.add("accepted", result.accepted);
        events.add("result", static_cast<uint64_t>(static_cast<int64_t>(-result.result)));
        events.add("fault", result.fault);
        events.add("index", result.index);
        events.add("counted", result.counted);
        events.add("started", result.started);
        events.add("irq_rise", simulation.irq_rise());
        events.add("refused", result.refused);
    }
    events.add("cycle", simulation.now());
    events.add("idle", memory.idle());
}

}  // namespace

Job read_job(const std::string& path) {
    std::ifstream file{path};
    if (!file) throw Stop{"job", path + ": cannot be read"};
    Job job;
    std::string content;
    for (unsigned number = 1; std::getline(file, content); ++number) {
        Line line{content.substr(0, content.find('#'))};
        if (line.empty()) continue;
        try {
            const std::string name = line.word();
            if (!read_setting(job, name, line) && !read_command(job, name, line))
                throw Stop{"job", name + ": neither a setting nor a command"};
            if (!line.empty()) throw Stop{"job", "more than " + name + " takes"};
        } catch (const Stop& stop) {
            throw Stop{"job", path + text(": line %u: ", number) + stop.message};
        }
    }
    return job;
}

bool run_job(Job job, const std::string& result) {
    Stop end{"ok", ""};
    Events events;
    uint64_t cycles = 0;
    MemoryCounts counts;
    try {
        const bool stalls = job.memory.stalls;
        const uint64_t seed = job.memory.stall_seed;
        const auto memory = std::make_unique<Channels>(std::move(job.memory), CHANNELS, BUS_BYTES);
        LiteMaster lite{stalls, seed};
        Simulation simulation{job.simulation, *memory, lite};
        try {
            simulation.reset(FIRST_RESET);
            for (const Command& command : job.commands) {
                events.begin(command);
                run_command(command, simulation, *memory, lite, events);
                events.end();
            }
        } catch (const Stop& stop) {
            end = stop;
            events.end();
        }
        cycles = simulation.now();
        counts = memory->counts();
        if (end.status != "ok") {
            // What would have been dumped is worth a look now.
            Events nobody;
            for (const Command& command : job.commands)
                if (command.name.rfind("dump", 0) == 0)
                    run_command(command, simulation, *memory, lite, nobody);
        }
    } catch (const Stop& stop) {
        end = stop;
    }
    std::ofstream file{result};
    file << "{\n\"status\": \"" << end.status << "\",\n\"message\": \"";
    for (const char c : end.message) {
        if (c == '"' || c == '\\') file << '\\';
        file << c;
    }
    file << "\",\n\"cycles\": " << cycles
         << ",\n\"bus\": {\"read_bursts\": " << counts.read_bursts
         << ", \"read_beats\": " << counts.read_beats
         << ", \"write_bursts\": " << counts.write_bursts
         << ", \"write_beats\": " << counts.write_beats
         << ", \"written_bytes\": " << counts.written_bytes << "},\n\"events\": ["
         << events.str() << "\n]\n}\n";
    file.close();
    return static_cast<bool>(file);
}
