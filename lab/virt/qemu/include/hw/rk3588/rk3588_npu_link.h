/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One NPU core's connection to the model process, over a socket chardev.
 * docs/npu-link.md describes the frames.
 */
#ifndef HW_RK3588_RK3588_NPU_LINK_H
#define HW_RK3588_RK3588_NPU_LINK_H

#include "hw/qdev-core.h"
#include "hw/rk3588/qemu_compat.h"

#define RK3588_NPU_LINK_BANKS 2

/* a run of guest RAM and where it lies in the shared RAM file */
typedef struct Rk3588NpuRamRange {
    uint64_t gpa;
    uint64_t offset;
    uint64_t size;
} Rk3588NpuRamRange;

typedef struct Rk3588NpuJob {
    uint32_t regcmd;            /* I/O virtual address of the first word */
    uint32_t words;             /* number of 64-bit command words */
    uint32_t task_con;
    uint32_t dma_base;
    struct {
        uint32_t dte_addr;
        uint32_t flags;         /* RK3588_NPU_BANK_* */
    } bank[RK3588_NPU_LINK_BANKS];
} Rk3588NpuJob;

#define RK3588_NPU_BANK_PAGING  (1u << 0)
#define RK3588_NPU_BANK_STALLED (1u << 1)
#define RK3588_NPU_BANK_EXISTS  (1u << 2)

typedef enum Rk3588NpuOutcome {
    RK3588_NPU_DONE,
    RK3588_NPU_HANG,
    RK3588_NPU_FAULT,
} Rk3588NpuOutcome;

typedef struct Rk3588NpuResult {
    Rk3588NpuOutcome outcome;
    uint32_t interrupts;        /* bits to set in the raw status */
    uint32_t task_status;
    uint32_t fault_bank;
    uint32_t fault_addr;
    bool fault_is_write;
    uint64_t ns;                /* modelled duration */
} Rk3588NpuResult;

typedef struct Rk3588NpuLinkOps {
    /* the job under way has ended; guest time runs again */
    void (*done)(void *opaque, const Rk3588NpuResult *result);
    /* the model is gone; guest time runs again, a job under way hangs */
    void (*lost)(void *opaque);
} Rk3588NpuLinkOps;

/* what the link has to know of its core */
typedef struct Rk3588NpuLinkConfig {
    uint32_t core;
    uint32_t num_banks;
    uint32_t timeout_ms;        /* host time that an answer may take */
    Rk3588NpuRamRange ram[2];
    uint32_t num_ram;
} Rk3588NpuLinkConfig;

typedef struct Rk3588NpuLink {
    CharFrontend chr;

    /* private */
    const Rk3588NpuLinkOps *ops;
    void *opaque;
    Error **init_errp;          /* where to put errors during init */
    QEMUBH *drop_bh;
    Rk3588NpuLinkConfig config;
    bool up;                    /* connected, and no error since */
    bool frozen;                /* this core holds guest time */
    bool waiting;               /* the caller is blocked on the model */
    uint32_t last_seq;
    bool job_active;
    bool job_abandoned;         /* its RESET is not answered yet */
    uint32_t job_seq;
    bool answer_pending;
    uint16_t answer_type;
    uint32_t answer_seq;
    uint32_t answer_value;
    uint8_t rx[256];
    uint32_t rx_len;
} Rk3588NpuLink;

/*
 * Take the chardev, greet the model and wait for its answer. Without a
 * chardev, or until the chardev is connected, the link is down and quiet.
 * Returns: false with @errp set when the model does not answer as it should.
 */
bool rk3588_npu_link_init(Rk3588NpuLink *link, DeviceState *owner,
                          const Rk3588NpuLinkConfig *config,
                          const Rk3588NpuLinkOps *ops, void *opaque,
                          Error **errp);

/* true while a model is connected and has behaved */
static inline bool rk3588_npu_link_is_up(const Rk3588NpuLink *link)
{
    return link->up;
}

/*
 * All of these return false when the link is down, or goes down. RESET, READ
 * and the end of a job are waited for, for at most timeout_ms of host time;
 * guest time stands still meanwhile.
 */
bool rk3588_npu_link_reset(Rk3588NpuLink *link);
bool rk3588_npu_link_write(Rk3588NpuLink *link, uint32_t reg, uint32_t value);
bool rk3588_npu_link_read(Rk3588NpuLink *link, uint32_t reg, uint32_t *value);

/* Start a job and freeze guest time until ops->done or ops->lost. */
bool rk3588_npu_link_job(Rk3588NpuLink *link, const Rk3588NpuJob *job);
/* Wait until the job under way has ended (ops->done has been called). */
bool rk3588_npu_link_finish_job(Rk3588NpuLink *link);

#endif
