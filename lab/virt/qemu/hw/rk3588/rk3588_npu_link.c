/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connection of an NPU core to the model process: frames, synchronous
 * answers, and guest time.
 *
 * Everything here runs with the BQL held, in the main loop (the chardev's
 * callbacks) or in the vCPU thread whose register access needs the model.
 *
 * Guest time. The model is far slower than the NPU, and the driver's timeouts
 * run on the guest's clock. So the clock stands still while some core's job is
 * at the model, or while the model is waited for; the cores are counted.
 * "stop" and "cont" of the machine switch the same clock: while it is stopped
 * only the count changes, and "cont" is corrected by a state handler.
 */
#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "chardev/char-socket.h"
#include "hw/rk3588/rk3588_npu_link.h"
#include "system/cpu-timers.h"
#include "system/runstate.h"

#define LINK_MAGIC    0x4c4e4b52        /* "RKNL" */
#define LINK_VERSION  1
#define HEADER_SIZE   16

#define FRAME_HELLO   0x01
#define FRAME_RESET   0x02
#define FRAME_WRITE   0x03
#define FRAME_READ    0x04
#define FRAME_JOB     0x05
#define FRAME_ANSWER  0x80              /* the answer to n is 0x80 + n */
#define FRAME_DONE    (FRAME_ANSWER + FRAME_JOB)

#define HELLO_SIZE(n) (8 + (n) * 24)
#define JOB_SIZE      32
#define DONE_SIZE     32
#define MAX_PAYLOAD   HELLO_SIZE(2)

#define INTERRUPT_BITS 0x1ffff
#define MAX_JOB_NS     (3600ull * NANOSECONDS_PER_SECOND)

static unsigned int frozen_cores;

static void link_update_time(Rk3588NpuLink *l)
{
    bool freeze = l->up && (l->job_active || l->waiting);

    if (freeze == l->frozen) {
        return;
    }
    l->frozen = freeze;
    if (freeze) {
        if (frozen_cores++ == 0) {
            cpu_disable_ticks();
        }
    } else {
        if (--frozen_cores == 0 && runstate_is_live(runstate_get())) {
            cpu_enable_ticks();
        }
    }
}

static void link_vm_state(void *opaque, bool running, RunState state)
{
    Rk3588NpuLink *l = opaque;

    if (running && l->frozen) {
        cpu_disable_ticks();            /* vm_start() has just enabled them */
    }
}

/* The end of the link, whatever the reason. The first one is reported. */
static void G_GNUC_PRINTF(2, 3)
link_fail(Rk3588NpuLink *l, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    if (!l->up) {
        return;
    }
    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    l->up = false;
    l->job_active = false;
    l->job_abandoned = false;
    l->answer_pending = false;
    link_update_time(l);
    /* not from here: the chardev may be in the middle of a callback */
    qemu_bh_schedule(l->drop_bh);
    if (l->init_errp) {
        error_setg(l->init_errp, "rk3588-npu: core %u: the NPU model %s",
                   l->config.core, text);
        return;
    }
    error_report("rk3588-npu: core %u: the NPU model %s; jobs of this core do "
                 "not complete from now on", l->config.core, text);
    l->ops->lost(l->opaque);
}

static void link_drop(void *opaque)
{
    Rk3588NpuLink *l = opaque;

    if (!l->up) {
        qemu_chr_fe_disconnect(&l->chr);
    }
}

/* ------------------------------ receiving ------------------------------ */

static int link_payload_size(uint16_t type)
{
    switch (type) {
    case FRAME_ANSWER + FRAME_HELLO:
    case FRAME_ANSWER + FRAME_READ:
        return 4;
    case FRAME_ANSWER + FRAME_RESET:
        return 0;
    case FRAME_DONE:
        return DONE_SIZE;
    default:
        return -1;
    }
}

static void link_handle_done(Rk3588NpuLink *l, uint32_t seq, const uint8_t *p)
{
    uint32_t outcome = ldl_le_p(p);
    Rk3588NpuResult result = {
        .outcome = outcome,
        .interrupts = ldl_le_p(p + 4),
        .task_status = ldl_le_p(p + 8),
        .fault_bank = ldl_le_p(p + 12),
        .fault_addr = ldl_le_p(p + 16),
        .fault_is_write = ldl_le_p(p + 20) & 1,
        .ns = ldq_le_p(p + 24),
    };

    if (seq != l->job_seq || !(l->job_active || l->job_abandoned)) {
        link_fail(l, "sent DONE for a job that is not under way (sequence "
                  "number %u)", seq);
    } else if (outcome > RK3588_NPU_FAULT) {
        link_fail(l, "sent DONE with the unknown outcome %u", outcome);
    } else if (result.interrupts & ~INTERRUPT_BITS) {
        link_fail(l, "sent DONE with interrupt bits 0x%x, which do not exist",
                  result.interrupts & ~INTERRUPT_BITS);
    } else if (outcome == RK3588_NPU_FAULT &&
               result.fault_bank >= l->config.num_banks) {
        link_fail(l, "sent DONE with a fault in IOMMU bank %u, which does not "
                  "exist", result.fault_bank);
    } else if (result.ns > MAX_JOB_NS) {
        link_fail(l, "sent DONE with a duration of %" PRIu64 " ns, more than "
                  "an hour", result.ns);
    } else if (l->job_abandoned) {
        return;                         /* it crossed our RESET */
    } else {
        l->job_active = false;
        link_update_time(l);
        l->ops->done(l->opaque, &result);
    }
}

static void link_handle(Rk3588NpuLink *l, uint16_t type, uint32_t seq,
                        const uint8_t *payload)
{
    if (type == FRAME_DONE) {
        link_handle_done(l, seq, payload);
        return;
    }
    if (!l->answer_pending || type != l->answer_type || seq != l->answer_seq) {
        link_fail(l, "sent an answer of type 0x%02x, sequence number %u, that "
                  "nothing asked for", type, seq);
        return;
    }
    l->answer_value = link_payload_size(type) ? ldl_le_p(payload) : 0;
    l->answer_pending = false;
}

/* Consume the complete frames in the receive buffer. */
static void link_parse(Rk3588NpuLink *l)
{
    while (l->up && l->rx_len >= HEADER_SIZE) {
        uint32_t magic = ldl_le_p(l->rx);
        uint16_t type = lduw_le_p(l->rx + 4);
        uint16_t len = lduw_le_p(l->rx + 6);
        uint32_t core = ldl_le_p(l->rx + 8);
        uint32_t seq = ldl_le_p(l->rx + 12);

        if (magic != LINK_MAGIC) {
            link_fail(l, "sent a malformed frame (magic 0x%08x)", magic);
            return;
        }
        if (link_payload_size(type) < 0) {
            link_fail(l, "sent a frame of the unknown type 0x%02x", type);
            return;
        }
        if (len != link_payload_size(type)) {
            link_fail(l, "sent a malformed frame (type 0x%02x with %u bytes "
                      "instead of %d)", type, len, link_payload_size(type));
            return;
        }
        if (core != l->config.core) {
            link_fail(l, "sent a frame for core %u", core);
            return;
        }
        if (l->rx_len < HEADER_SIZE + len) {
            return;
        }
        link_handle(l, type, seq, l->rx + HEADER_SIZE);
        l->rx_len -= HEADER_SIZE + len;
        memmove(l->rx, l->rx + HEADER_SIZE + len, l->rx_len);
    }
}

static int link_chr_can_read(void *opaque)
{
    Rk3588NpuLink *l = opaque;

    return l->up ? sizeof(l->rx) - l->rx_len : 0;
}

static void link_chr_read(void *opaque, const uint8_t *buf, int size)
{
    Rk3588NpuLink *l = opaque;

    memcpy(l->rx + l->rx_len, buf, size);
    l->rx_len += size;
    link_parse(l);
}

/* ------------------------------- waiting ------------------------------- */

static SocketChardev *link_socket(Rk3588NpuLink *l)
{
    SocketChardev *sc = SOCKET_CHARDEV(qemu_chr_fe_get_driver(&l->chr));

    return sc->state == TCP_CHARDEV_STATE_CONNECTED ? sc : NULL;
}

/* Wait for input or space for output; false when @deadline has passed. */
static bool link_poll(SocketChardev *sc, int events, int64_t deadline)
{
    GPollFD fd = { .fd = sc->sioc->fd, .events = events };
    int64_t left = deadline - qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (left <= 0) {
        return false;
    }
    g_poll(&fd, 1, left);               /* EINTR: the caller tries again */
    return true;
}

static int64_t link_deadline(Rk3588NpuLink *l)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + l->config.timeout_ms;
}

/*
 * Handle what the model sends until *@pending is false. The chardev's own
 * read callback cannot run meanwhile: it needs the BQL, which we hold.
 */
static bool link_wait(Rk3588NpuLink *l, const bool *pending, const char *what)
{
    int64_t deadline = link_deadline(l);

    l->waiting = true;
    link_update_time(l);
    while (l->up && *pending) {
        SocketChardev *sc = link_socket(l);
        ssize_t n;

        if (!sc) {
            link_fail(l, "is not connected");
            break;
        }
        n = qio_channel_read(sc->ioc, (char *)l->rx + l->rx_len,
                             sizeof(l->rx) - l->rx_len, NULL);
        if (n > 0) {
            l->rx_len += n;
            link_parse(l);
        } else if (n != QIO_CHANNEL_ERR_BLOCK) {
            link_fail(l, "closed the connection");
        } else if (!link_poll(sc, G_IO_IN | G_IO_HUP | G_IO_ERR, deadline)) {
            link_fail(l, "did not answer %s within %u ms", what,
                      l->config.timeout_ms);
        }
    }
    l->waiting = false;
    link_update_time(l);
    return l->up;
}

/* ------------------------------- sending ------------------------------- */

static bool link_send(Rk3588NpuLink *l, uint16_t type, const void *payload,
                      uint16_t len)
{
    uint8_t frame[HEADER_SIZE + MAX_PAYLOAD];
    int64_t deadline = link_deadline(l);
    int size = HEADER_SIZE + len;
    int sent = 0;

    if (!l->up) {
        return false;
    }
    stl_le_p(frame, LINK_MAGIC);
    stw_le_p(frame + 4, type);
    stw_le_p(frame + 6, len);
    stl_le_p(frame + 8, l->config.core);
    stl_le_p(frame + 12, ++l->last_seq);
    if (len) {
        memcpy(frame + HEADER_SIZE, payload, len);
    }
    while (l->up && sent < size) {
        SocketChardev *sc = link_socket(l);
        int n = -1;

        if (sc) {
            n = qemu_chr_fe_write(&l->chr, frame + sent, size - sent);
        }
        if (n > 0) {
            sent += n;
        } else if (!sc || errno != EAGAIN) {
            link_fail(l, "closed the connection");
        } else if (!link_poll(sc, G_IO_OUT | G_IO_HUP | G_IO_ERR, deadline)) {
            link_fail(l, "did not take a frame within %u ms",
                      l->config.timeout_ms);
        }
    }
    return l->up;
}

/* Send a request, and wait for its answer. */
static bool link_request(Rk3588NpuLink *l, uint16_t type, const void *payload,
                         uint16_t len, const char *what)
{
    if (!link_send(l, type, payload, len)) {
        return false;
    }
    l->answer_pending = true;
    l->answer_type = FRAME_ANSWER + type;
    l->answer_seq = l->last_seq;
    return link_wait(l, &l->answer_pending, what);
}

bool rk3588_npu_link_reset(Rk3588NpuLink *l)
{
    bool ok;

    l->job_abandoned = l->job_active;
    l->job_active = false;
    ok = link_request(l, FRAME_RESET, NULL, 0, "RESET");
    l->job_abandoned = false;
    link_update_time(l);
    return ok;
}

bool rk3588_npu_link_write(Rk3588NpuLink *l, uint32_t reg, uint32_t value)
{
    uint8_t payload[8];

    stl_le_p(payload, reg);
    stl_le_p(payload + 4, value);
    return link_send(l, FRAME_WRITE, payload, sizeof(payload));
}

bool rk3588_npu_link_read(Rk3588NpuLink *l, uint32_t reg, uint32_t *value)
{
    uint8_t payload[4];

    stl_le_p(payload, reg);
    if (!link_request(l, FRAME_READ, payload, sizeof(payload), "READ")) {
        return false;
    }
    *value = l->answer_value;
    return true;
}

bool rk3588_npu_link_job(Rk3588NpuLink *l, const Rk3588NpuJob *job)
{
    uint8_t payload[JOB_SIZE];
    int i;

    assert(!l->job_active);
    stl_le_p(payload, job->regcmd);
    stl_le_p(payload + 4, job->words);
    stl_le_p(payload + 8, job->task_con);
    stl_le_p(payload + 12, job->dma_base);
    for (i = 0; i < RK3588_NPU_LINK_BANKS; i++) {
        stl_le_p(payload + 16 + i * 8, job->bank[i].dte_addr);
        stl_le_p(payload + 20 + i * 8, job->bank[i].flags);
    }
    if (!link_send(l, FRAME_JOB, payload, sizeof(payload))) {
        return false;
    }
    l->job_active = true;
    l->job_seq = l->last_seq;
    link_update_time(l);
    return true;
}

bool rk3588_npu_link_finish_job(Rk3588NpuLink *l)
{
    return link_wait(l, &l->job_active, "JOB");
}

/* ------------------------------ life cycle ----------------------------- */

static void link_greet(Rk3588NpuLink *l)
{
    uint8_t payload[MAX_PAYLOAD];
    int i;

    l->up = true;
    l->rx_len = 0;
    stl_le_p(payload, LINK_VERSION);
    stl_le_p(payload + 4, l->config.num_ram);
    for (i = 0; i < l->config.num_ram; i++) {
        stq_le_p(payload + HELLO_SIZE(i), l->config.ram[i].gpa);
        stq_le_p(payload + HELLO_SIZE(i) + 8, l->config.ram[i].offset);
        stq_le_p(payload + HELLO_SIZE(i) + 16, l->config.ram[i].size);
    }
    if (!link_request(l, FRAME_HELLO, payload, HELLO_SIZE(l->config.num_ram),
                      "HELLO")) {
        return;
    }
    if (l->answer_value != LINK_VERSION) {
        link_fail(l, "speaks version %u of the link protocol, not %u",
                  l->answer_value, LINK_VERSION);
    }
}

static void link_chr_event(void *opaque, QEMUChrEvent event)
{
    Rk3588NpuLink *l = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        if (!l->up) {
            link_greet(l);
        }
        break;
    case CHR_EVENT_CLOSED:
        if (!OBJECT(qemu_chr_fe_get_driver(&l->chr))->parent) {
            l->up = false;              /* QEMU ends and deletes its chardevs */
        }
        link_fail(l, "closed the connection");
        break;
    default:
        break;
    }
}

bool rk3588_npu_link_init(Rk3588NpuLink *l, DeviceState *owner,
                          const Rk3588NpuLinkConfig *config,
                          const Rk3588NpuLinkOps *ops, void *opaque,
                          Error **errp)
{
    ERRP_GUARD();

    l->config = *config;
    l->ops = ops;
    l->opaque = opaque;
    if (!qemu_chr_fe_backend_connected(&l->chr)) {
        return true;
    }
    if (!object_dynamic_cast(OBJECT(qemu_chr_fe_get_driver(&l->chr)),
                             TYPE_CHARDEV_SOCKET)) {
        error_setg(errp, "rk3588-npu: core %u: the chardev must be a socket",
                   config->core);
        return false;
    }
    if (icount_enabled()) {
        error_setg(errp, "rk3588-npu: core %u: -icount cannot be combined "
                   "with the NPU model: guest time must be able to stand "
                   "still", config->core);
        return false;
    }
    l->drop_bh = qemu_bh_new_guarded(link_drop, l,
                                     &owner->mem_reentrancy_guard);
    qemu_add_vm_change_state_handler(link_vm_state, l);

    /* if the socket is connected, OPENED is delivered (and HELLO sent) now */
    l->init_errp = errp;
    qemu_chr_fe_set_handlers(&l->chr, link_chr_can_read, link_chr_read,
                             link_chr_event, NULL, l, NULL, true);
    l->init_errp = NULL;
    return !*errp;
}
