// Simulates the whole accelerator between a memory and a master of its registers: harness JOB RESULT
#include <cstdio>

#include "script.h"

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: harness JOB RESULT\n");
        return 2;
    }
    try {
        if (run_job(read_job(arguments[1]), arguments[2])) return 0;
        std::fprintf(stderr, "%s: cannot be written\n", arguments[2]);
    } catch (const Stop& stop) {
        std::fprintf(stderr, "%s\n", stop.message.c_str());
    }
    return 1;
}
