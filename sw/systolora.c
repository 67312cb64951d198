#include "systolora.h"

static uint32_t get(const struct systolora *device, uint32_t offset)
{
    return device->read32(device->context, offset);
}

static void put(const struct systolora *device, uint32_t offset, uint32_t value)
{
    device->write32(device->context, offset, value);
}

/* Of a pair _LO, _HI: the high half belongs to the low half that was read last. */
static uint64_t get_pair(const struct systolora *device, uint32_t low)
{
    uint64_t value = get(device, low);
    return value | (uint64_t)get(device, low + 4u) << 32;
}

static void put_pair(const struct systolora *device, uint32_t low, uint64_t value)
{
    put(device, low, (uint32_t)(value & 0xFFFFFFFFu));
    put(device, low + 4u, (uint32_t)(value >> 32));
}

/* value of a field; `field` is the name without _MASK and _SHIFT */
#define FIELD(word, field) (((word) & field##_MASK) >> field##_SHIFT)

static int fits(uint64_t value, uint32_t bits)
{
    return bits >= 64u || value >> bits == 0u;
}

/* First address after a window; 2^64 is 0 with `top`. Whether it lies in the address space. */
static int end_of(const struct systolora_window *window, uint32_t address_bits, uint64_t *end,
                  uint32_t *top)
{
    *end = window->base + window->size;
    *top = *end < window->base ? 1u : 0u;
    if (!fits(window->base, address_bits))
        return 0;
    if (*top)
        return address_bits >= 64u && *end == 0u;
    return window->size == 0u || fits(*end - 1u, address_bits);
}

int systolora_init(struct systolora *device, systolora_read32 read32, systolora_write32 write32,
                   void *context)
{
    uint32_t version;

    device->read32 = read32;
    device->write32 = write32;
    device->context = context;
    if (get(device, SYSTOLORA_REG_ID) != SYSTOLORA_DEVICE_ID)
        return SYSTOLORA_E_DEVICE;
    version = get(device, SYSTOLORA_REG_VERSION);
    if (FIELD(version, SYSTOLORA_VERSION_MAJOR) != SYSTOLORA_VERSION_MAJOR)
        return SYSTOLORA_E_DEVICE;
    return SYSTOLORA_OK;
}

void systolora_info(const struct systolora *device, struct systolora_info *info)
{
    uint32_t word = get(device, SYSTOLORA_REG_VERSION);

    info->version_major = FIELD(word, SYSTOLORA_VERSION_MAJOR);
    info->version_minor = FIELD(word, SYSTOLORA_VERSION_MINOR);
    word = get(device, SYSTOLORA_REG_ARRAY);
    info->rows = FIELD(word, SYSTOLORA_ARRAY_ROWS);
    info->cols = FIELD(word, SYSTOLORA_ARRAY_COLS);
    info->segments = FIELD(word, SYSTOLORA_ARRAY_SEGMENTS);
    info->int16 = FIELD(word, SYSTOLORA_ARRAY_INT16);
    info->fused_quantize = FIELD(word, SYSTOLORA_ARRAY_FUSED_QUANTIZE);
    word = get(device, SYSTOLORA_REG_ACC);
    info->acc_depth = FIELD(word, SYSTOLORA_ACC_DEPTH);
    word = get(device, SYSTOLORA_REG_BUS);
    info->bus_bits = FIELD(word, SYSTOLORA_BUS_BUS_BITS);
    info->address_bits = FIELD(word, SYSTOLORA_BUS_ADDRESS_BITS);
    info->outstanding = FIELD(word, SYSTOLORA_BUS_OUTSTANDING);
    info->channels = FIELD(word, SYSTOLORA_BUS_CHANNELS);
    info->act_bytes = get(device, SYSTOLORA_REG_ACT_BYTES);
    info->wgt_bytes = get(device, SYSTOLORA_REG_WGT_BYTES);
    info->digest = get(device, SYSTOLORA_REG_DIGEST);
}

int systolora_submit(const struct systolora *device, const struct systolora_run *run)
{
    uint32_t bits = FIELD(get(device, SYSTOLORA_REG_BUS), SYSTOLORA_BUS_ADDRESS_BITS);
    uint64_t read_end, write_end;
    uint32_t read_top, write_top;

    if (!fits(run->program, bits) || !end_of(&run->read, bits, &read_end, &read_top) ||
        !end_of(&run->write, bits, &write_end, &write_top))
        return SYSTOLORA_E_RANGE;
    if (get(device, SYSTOLORA_REG_STATUS) & SYSTOLORA_STATUS_BUSY_MASK)
        return SYSTOLORA_E_BUSY;
    put_pair(device, SYSTOLORA_REG_PROGRAM_ADDRESS_LO, run->program);
    put(device, SYSTOLORA_REG_PROGRAM_LENGTH, run->length);
    put(device, SYSTOLORA_REG_RUNS, run->runs);
    put(device, SYSTOLORA_REG_WORD_BASE, run->word_base);
    put(device, SYSTOLORA_REG_STEP, run->step);
    put_pair(device, SYSTOLORA_REG_READ_BASE_LO, run->read.base);
    put_pair(device, SYSTOLORA_REG_READ_LIMIT_LO, read_end);
    put_pair(device, SYSTOLORA_REG_WRITE_BASE_LO, run->write.base);
    put_pair(device, SYSTOLORA_REG_WRITE_LIMIT_LO, write_end);
    put(device, SYSTOLORA_REG_LIMIT_TOP,
        read_top << SYSTOLORA_LIMIT_TOP_READ_SHIFT | write_top << SYSTOLORA_LIMIT_TOP_WRITE_SHIFT);
    put(device, SYSTOLORA_REG_IRQ_STATUS,
        SYSTOLORA_IRQ_STATUS_DONE_MASK | SYSTOLORA_IRQ_STATUS_ERROR_MASK);
    put(device, SYSTOLORA_REG_CONTROL, SYSTOLORA_CONTROL_START_MASK);
    return SYSTOLORA_OK;
}

int systolora_wait(const struct systolora *device, uint32_t polls)
{
    uint32_t status;

    do {
        status = get(device, SYSTOLORA_REG_STATUS);
        if (!(status & SYSTOLORA_STATUS_BUSY_MASK)) {
            if (status & SYSTOLORA_STATUS_DONE_MASK)
                return SYSTOLORA_OK;
            return status & SYSTOLORA_STATUS_ERROR_MASK ? SYSTOLORA_E_FAULT : SYSTOLORA_E_IDLE;
        }
    } while (polls != 0u && --polls != 0u);
    return SYSTOLORA_E_TIMEOUT;
}

void systolora_error(const struct systolora *device, struct systolora_error *error)
{
    error->code = FIELD(get(device, SYSTOLORA_REG_ERROR), SYSTOLORA_ERROR_CODE);
    error->index = FIELD(get(device, SYSTOLORA_REG_ERROR_INDEX), SYSTOLORA_ERROR_INDEX_INDEX);
}

void systolora_abort(const struct systolora *device)
{
    put(device, SYSTOLORA_REG_CONTROL, SYSTOLORA_CONTROL_ABORT_MASK);
}

void systolora_progress(const struct systolora *device, struct systolora_progress *progress)
{
    progress->runs_left = get(device, SYSTOLORA_REG_RUNS_LEFT);
    progress->word_base = get(device, SYSTOLORA_REG_WORD_BASE);
    progress->step = get(device, SYSTOLORA_REG_STEP);
}

void systolora_counters(const struct systolora *device, struct systolora_counters *counters)
{
    counters->cycles = get_pair(device, SYSTOLORA_REG_CYCLES_LO);
    counters->array_busy = get_pair(device, SYSTOLORA_REG_ARRAY_BUSY_LO);
    counters->stall_load = get_pair(device, SYSTOLORA_REG_STALL_LOAD_LO);
    counters->stall_post = get_pair(device, SYSTOLORA_REG_STALL_POST_LO);
    counters->stall_store = get_pair(device, SYSTOLORA_REG_STALL_STORE_LO);
    counters->bytes_read = get_pair(device, SYSTOLORA_REG_BYTES_READ_LO);
    counters->bytes_written = get_pair(device, SYSTOLORA_REG_BYTES_WRITTEN_LO);
    counters->macs = get_pair(device, SYSTOLORA_REG_MACS_LO);
    counters->descriptors = get_pair(device, SYSTOLORA_REG_DESCRIPTORS_LO);
}

uint32_t systolora_sticky(const struct systolora *device, uint32_t clear)
{
    uint32_t bits = get(device, SYSTOLORA_REG_STICKY);

    if (clear)
        put(device, SYSTOLORA_REG_STICKY, clear);
    return bits;
}

void systolora_irq_enable(const struct systolora *device, uint32_t mask)
{
    put(device, SYSTOLORA_REG_IRQ_MASK, mask);
}

uint32_t systolora_irq_take(const struct systolora *device)
{
    uint32_t pending = get(device, SYSTOLORA_REG_IRQ_STATUS);

    put(device, SYSTOLORA_REG_IRQ_STATUS, pending);
    return pending;
}
