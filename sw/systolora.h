/*
 * Driver of the systolora accelerator: C99, no library, no interrupt handler of its own, no memory
 * but the caller's. systolora_regs.h comes with the generated Verilog; the driver asks the device
 * for its configuration and so runs with any.
 *
 * Nothing here touches caches: program and data must be in memory where the device reads them when
 * systolora_submit is called, and what the device wrote is there when systolora_wait has returned
 * SYSTOLORA_OK. write32 must not let a write pass earlier ones, nor earlier writes to memory.
 */
#ifndef SYSTOLORA_H
#define SYSTOLORA_H

#include <stdint.h>

#include "systolora_regs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What functions return. */
enum systolora_result {
    SYSTOLORA_OK = 0,
    SYSTOLORA_E_DEVICE = -1,  /* no accelerator there, or of another major version */
    SYSTOLORA_E_RANGE = -2,   /* an address or a window is beyond the device's addresses */
    SYSTOLORA_E_BUSY = -3,    /* a program runs */
    SYSTOLORA_E_IDLE = -4,    /* nothing runs, and nothing has run since the reset */
    SYSTOLORA_E_TIMEOUT = -5, /* it still runs */
    SYSTOLORA_E_FAULT = -6    /* the run ended with an error: systolora_error */
};

/* Access to the registers, from whoever knows where they are; offset in bytes. */
typedef uint32_t (*systolora_read32)(void *context, uint32_t offset);
typedef void (*systolora_write32)(void *context, uint32_t offset, uint32_t value);

struct systolora {
    systolora_read32 read32;
    systolora_write32 write32;
    void *context; /* handed to both */
};

/* The configuration that the device was generated with. */
struct systolora_info {
    uint32_t version_major, version_minor; /* of registers and descriptors */
    uint32_t rows, cols;                   /* of the array */
    uint32_t segments;
    uint32_t int16;          /* 1: int16 operands */
    uint32_t fused_quantize; /* 1: row operations may quantize their values */
    uint32_t acc_depth;
    uint32_t act_bytes, wgt_bytes;
    uint32_t bus_bits, address_bits;
    uint32_t outstanding;
    uint32_t channels; /* memory buses side by side */
    uint32_t digest; /* its first 32 bits: programs are compiled for one configuration */
};

/* A part of memory; size 0 is none. It may end with the address space. */
struct systolora_window {
    uint64_t base, size; /* bytes */
};

struct systolora_run {
    uint64_t program; /* address of the first descriptor, a multiple of 64 */
    uint32_t length;  /* descriptors */
    uint32_t runs;    /* how often; 0 is 1 */
    uint32_t word_base; /* seed + step * SYSTOLORA_STEP_WORD, mod 2^32 */
    uint32_t step;
    struct systolora_window read;  /* must hold the program and all that it reads */
    struct systolora_window write; /* all that it writes */
};

struct systolora_progress {
    uint32_t runs_left;
    uint32_t word_base, step; /* of the next run, when none runs */
};

struct systolora_error {
    uint32_t code;  /* enum systolora_fault */
    uint32_t index; /* number of the descriptor that has it */
};

/* Counts from the start of the last run to its end, or until now. */
struct systolora_counters {
    uint64_t cycles;
    uint64_t array_busy, stall_load, stall_post, stall_store; /* cycles */
    uint64_t bytes_read, bytes_written;
    uint64_t macs;
    uint64_t descriptors;
};

/* Fills `device` and looks for the accelerator: OK or E_DEVICE. */
int systolora_init(struct systolora *device, systolora_read32 read32, systolora_write32 write32,
                   void *context);

void systolora_info(const struct systolora *device, struct systolora_info *info);

/* Starts a program: OK, E_RANGE or E_BUSY; then nothing was changed. Clears a pending interrupt. */
int systolora_submit(const struct systolora *device, const struct systolora_run *run);

/* Reads the status until the run has ended, `polls` times at most but once at least:
 * OK, E_FAULT, E_TIMEOUT or E_IDLE. */
int systolora_wait(const struct systolora *device, uint32_t polls);

/* How the last run ended; code SYSTOLORA_FAULT_NONE if well, or if it still runs. */
void systolora_error(const struct systolora *device, struct systolora_error *error);

/* Ends the run as soon as the memory bus is quiet, with SYSTOLORA_FAULT_ABORTED; wait for it. */
void systolora_abort(const struct systolora *device);

void systolora_progress(const struct systolora *device, struct systolora_progress *progress);

void systolora_counters(const struct systolora *device, struct systolora_counters *counters);

/* The sticky bits, SYSTOLORA_STICKY_..._MASK; those in `clear` are cleared. */
uint32_t systolora_sticky(const struct systolora *device, uint32_t clear);

/* Which ends of a run raise the interrupt: SYSTOLORA_IRQ_MASK_..._MASK. */
void systolora_irq_enable(const struct systolora *device, uint32_t mask);

/* For the interrupt handler: what is pending, SYSTOLORA_IRQ_STATUS_..._MASK; clears it. */
uint32_t systolora_irq_take(const struct systolora *device);

#ifdef __cplusplus
}
#endif

#endif
