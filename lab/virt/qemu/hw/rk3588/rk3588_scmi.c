/*
 * SCMI over SMC as the RK3588's secure firmware answers it: base, clock and
 * reset protocols (Arm DEN0056) with one message at a time in 256 bytes of
 * shared memory. Clock and reset numbers and names, rate lists and what is
 * secure-only are those of Trusted Firmware-A's rk3588 platform.
 *
 * Rates are kept, not applied: the virtual board has no ticking clocks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/log.h"
#include "qapi/error.h"
#include "cpu.h"
#include "hw/qdev-properties.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_scmi.h"
#include "migration/vmstate.h"

/* Function identifiers (Arm DEN0028, DEN0022; 0x82000010 from the dtsi) */
#define SMC_SMCCC_VERSION   0x80000000
#define SMC_SCMI            0x82000010
#define SMC_PSCI_FEATURES   0x8400000a
#define SMCCC_1_2           0x10002

/* Shared memory layout */
#define SHMEM_STATUS        0x04
#define SHMEM_STATUS_FREE   BIT(0)
#define SHMEM_STATUS_ERROR  BIT(1)
#define SHMEM_LENGTH        0x14        /* of header and payload */
#define SHMEM_HEADER        0x18
#define SHMEM_PAYLOAD       0x1c
#define PAYLOAD_WORDS       ((RK3588_SCMI_SHMEM_SIZE - SHMEM_PAYLOAD) / 4)

#define PROTO_BASE          0x10
#define PROTO_CLOCK         0x14
#define PROTO_RESET         0x16

/* Messages common to all protocols, and the rest */
#define MSG_VERSION         0x0
#define MSG_ATTRIBUTES      0x1
#define MSG_MSG_ATTRIBUTES  0x2
#define BASE_VENDOR         0x3
#define BASE_SUB_VENDOR     0x4
#define BASE_IMPL_VERSION   0x5
#define BASE_PROTOCOLS      0x6
#define BASE_AGENT          0x7
#define CLOCK_ATTRIBUTES    0x3
#define CLOCK_RATES         0x4
#define CLOCK_RATE_SET      0x5
#define CLOCK_RATE_GET      0x6
#define CLOCK_CONFIG_SET    0x7
#define RESET_ATTRIBUTES    0x3
#define RESET_RESET         0x4

enum {
    SCMI_SUCCESS = 0,
    SCMI_NOT_SUPPORTED = -1,
    SCMI_INVALID_PARAMETERS = -2,
    SCMI_NOT_FOUND = -4,
    SCMI_OUT_OF_RANGE = -5,
    SCMI_PROTOCOL_ERROR = -10,
};

/* A request's or reply's payload, as words */
typedef struct ScmiPayload {
    uint32_t word[PAYLOAD_WORDS];
    uint32_t num;
} ScmiPayload;

#define MHZ 1000000u

static const uint32_t rates_cpul[] = {
    408 * MHZ, 600 * MHZ, 816 * MHZ, 1008 * MHZ, 1200 * MHZ, 1416 * MHZ,
    1608 * MHZ, 1800 * MHZ, 0
};

static const uint32_t rates_cpub[] = {
    408 * MHZ, 816 * MHZ, 1008 * MHZ, 1200 * MHZ, 1416 * MHZ, 1608 * MHZ,
    1800 * MHZ, 2016 * MHZ, 2208 * MHZ, 2304 * MHZ, 2400 * MHZ, 0
};

static const uint32_t rates_gpu[] = {   /* and the NPU's */
    200 * MHZ, 300 * MHZ, 400 * MHZ, 500 * MHZ, 600 * MHZ, 700 * MHZ,
    800 * MHZ, 900 * MHZ, 1000 * MHZ, 0
};

static const uint32_t rates_bus[] = {
    24 * MHZ, 50 * MHZ, 100 * MHZ, 150 * MHZ, 200 * MHZ, 250 * MHZ, 350 * MHZ,
    700 * MHZ, 0
};

static const uint32_t rates_sd[] = {
    400000, 24 * MHZ, 50 * MHZ, 100 * MHZ, 150 * MHZ, 200 * MHZ, 300 * MHZ,
    400 * MHZ, 600 * MHZ, 700 * MHZ, 0
};

/* Indexed by clock number; one without a name is not for this agent */
static const struct {
    const char *name;
    uint32_t rate;
    const uint32_t *rates;      /* NULL: the rate does not change */
    bool listed_only;           /* other rates are refused, not rounded */
} scmi_clocks[RK3588_SCMI_NUM_CLOCKS] = {
    [0] = { "scmi_clk_cpul", 816 * MHZ, rates_cpul, true },
    [1] = { "scmi_clk_dsu", 816 * MHZ, rates_cpul, true },
    [2] = { "scmi_clk_cpub01", 816 * MHZ, rates_cpub, true },
    [3] = { "scmi_clk_cpub23", 816 * MHZ, rates_cpub, true },
    [4] = { "scmi_clk_ddr", 528 * MHZ, NULL, true },
    [5] = { "scmi_clk_gpu", 200 * MHZ, rates_gpu, true },
    [6] = { "scmi_clk_npu", 200 * MHZ, rates_gpu, true },
    [9] = { "scmi_cclk_sd", 200 * MHZ, rates_sd, false },
    [10] = { "scmi_dclk_sd", 24 * MHZ, rates_sd, false },
    [11] = { "scmi_aclk_se_ns", 350 * MHZ, rates_bus, false },
    [12] = { "scmi_hclk_se_ns", 150 * MHZ, rates_bus, false },
    [13] = { "scmi_tclk_wdt", 24 * MHZ, NULL, true },
    [19] = { "scmi_crypto_r", 150 * MHZ, rates_bus, false },
    [20] = { "scmi_crypto_c", 350 * MHZ, rates_bus, false },
    [21] = { "scmi_crypto_p", 350 * MHZ, rates_bus, false },
    [22] = { "scmi_spll", 702 * MHZ, NULL, true },
    [23] = { "scmi_hclk_sd", 150 * MHZ, NULL, true },
};

/* Indexed by reset number */
static const char *const scmi_resets[RK3588_SCMI_NUM_RESETS] = {
    [15] = "scmi_sr_cy_core", [16] = "scmi_sr_cy_pka",
    [17] = "scmi_sr_cy_rng", [18] = "scmi_sr_a_cy", [19] = "scmi_sr_h_cy",
    [25] = "scmi_sr_k_core", [26] = "scmi_sr_k_rng", [29] = "scmi_sr_p_otp",
    [30] = "scmi_sr_otp", [31] = "scmi_sr_wdt", [32] = "scmi_sr_t_wdt",
    [33] = "scmi_sr_h_boot", [46] = "scmi_sr_p_ky", [47] = "scmi_sr_h_trng",
    [48] = "scmi_sr_t_trng", [49] = "scmi_sr_d_sd", [50] = "scmi_sr_h_sd",
    [51] = "scmi_sr_h_sd_b", [52] = "scmi_sr_sd", [53] = "scmi_sr_p_trng",
};

static void put_word(ScmiPayload *p, uint32_t val)
{
    assert(p->num < PAYLOAD_WORDS);
    p->word[p->num++] = val;
}

static void put_rate(ScmiPayload *p, uint64_t rate)
{
    put_word(p, rate);
    put_word(p, rate >> 32);
}

static void put_name(ScmiPayload *p, const char *name)
{
    char buf[16] = {};

    pstrcpy(buf, sizeof(buf), name);
    for (int i = 0; i < sizeof(buf); i += 4) {
        put_word(p, ldl_le_p(buf + i));
    }
}

/*
 * The replies every protocol starts with. @sizes has the number of request
 * words of each message, -1 where there is no such message.
 */
static bool scmi_common(uint32_t msg, const ScmiPayload *in, ScmiPayload *out,
                        const int8_t *sizes, uint32_t num, uint32_t version,
                        uint32_t attributes, int32_t *status)
{
    if (msg >= num || sizes[msg] < 0) {
        *status = SCMI_NOT_SUPPORTED;
    } else if (in->num != sizes[msg]) {
        *status = SCMI_PROTOCOL_ERROR;
    } else if (msg == MSG_VERSION) {
        put_word(out, version);
        *status = SCMI_SUCCESS;
    } else if (msg == MSG_ATTRIBUTES) {
        put_word(out, attributes);
        *status = SCMI_SUCCESS;
    } else if (msg == MSG_MSG_ATTRIBUTES) {
        if (in->word[0] < num && sizes[in->word[0]] >= 0) {
            put_word(out, 0);
            *status = SCMI_SUCCESS;
        } else {
            *status = SCMI_NOT_FOUND;
        }
    } else {
        return false;
    }
    return true;
}

static int32_t scmi_base(uint32_t msg, const ScmiPayload *in, ScmiPayload *out)
{
    static const int8_t sizes[] = { 0, 0, 1, 0, 0, 0, 1, 1 };
    int32_t status;

    /* two protocols besides this one, one agent */
    if (scmi_common(msg, in, out, sizes, ARRAY_SIZE(sizes), 0x20000,
                    2 | 1 << 8, &status)) {
        return status;
    }
    switch (msg) {
    case BASE_VENDOR:
    case BASE_SUB_VENDOR:
        put_name(out, "rockchip");
        return SCMI_SUCCESS;
    case BASE_IMPL_VERSION:
        put_word(out, 0);
        return SCMI_SUCCESS;
    case BASE_PROTOCOLS:
        if (in->word[0] > 2) {
            return SCMI_INVALID_PARAMETERS;
        }
        put_word(out, 2 - in->word[0]);
        if (in->word[0] < 2) {
            put_word(out, in->word[0] ? PROTO_RESET
                                      : PROTO_CLOCK | PROTO_RESET << 8);
        }
        return SCMI_SUCCESS;
    case BASE_AGENT:
        if (in->word[0] > 1 && in->word[0] != UINT32_MAX) {
            return SCMI_NOT_FOUND;
        }
        put_word(out, !!in->word[0]);
        put_name(out, in->word[0] ? "OSPM" : "platform");
        return SCMI_SUCCESS;
    }
    g_assert_not_reached();
}

static int32_t scmi_clock_rates(Rk3588ScmiState *s, uint32_t id,
                                uint32_t index, ScmiPayload *out)
{
    const uint32_t *rates = scmi_clocks[id].rates;
    uint32_t num = 0;

    if (!rates) {
        if (index) {
            return SCMI_OUT_OF_RANGE;
        }
        put_word(out, 1);               /* a list of one, none remaining */
        put_rate(out, s->rate[id]);
        return SCMI_SUCCESS;
    }
    while (rates[num]) {
        num++;
    }
    if (index >= num) {
        return SCMI_OUT_OF_RANGE;
    }
    put_word(out, num - index);
    for (; index < num; index++) {
        put_rate(out, rates[index]);
    }
    return SCMI_SUCCESS;
}

static int32_t scmi_clock_set(Rk3588ScmiState *s, uint32_t id, uint64_t rate)
{
    const uint32_t *list = scmi_clocks[id].rates;
    bool listed = !list && rate == scmi_clocks[id].rate;

    for (; list && *list; list++) {
        listed |= *list == rate;
    }
    if (!rate || (scmi_clocks[id].listed_only && !listed)) {
        return SCMI_INVALID_PARAMETERS;
    }
    s->rate[id] = rate;
    return SCMI_SUCCESS;
}

static int32_t scmi_clock(Rk3588ScmiState *s, uint32_t msg,
                          const ScmiPayload *in, ScmiPayload *out)
{
    static const int8_t sizes[] = { 0, 0, 1, 1, 2, 4, 1, 2 };
    uint32_t id;
    int32_t status;

    if (scmi_common(msg, in, out, sizes, ARRAY_SIZE(sizes), 0x20000,
                    RK3588_SCMI_NUM_CLOCKS, &status)) {
        return status;
    }
    id = in->word[msg == CLOCK_RATE_SET ? 1 : 0];
    if (id >= RK3588_SCMI_NUM_CLOCKS || !scmi_clocks[id].name) {
        return SCMI_NOT_FOUND;
    }
    switch (msg) {
    case CLOCK_ATTRIBUTES:
        put_word(out, s->enabled[id]);
        put_name(out, scmi_clocks[id].name);
        return SCMI_SUCCESS;
    case CLOCK_RATES:
        return scmi_clock_rates(s, id, in->word[1], out);
    case CLOCK_RATE_SET:
        return scmi_clock_set(s, id,
                              deposit64(in->word[2], 32, 32, in->word[3]));
    case CLOCK_RATE_GET:
        put_rate(out, s->rate[id]);
        return SCMI_SUCCESS;
    case CLOCK_CONFIG_SET:
        s->enabled[id] = in->word[1] & 1;
        return SCMI_SUCCESS;
    }
    g_assert_not_reached();
}

static int32_t scmi_reset(Rk3588ScmiState *s, uint32_t msg,
                          const ScmiPayload *in, ScmiPayload *out)
{
    static const int8_t sizes[] = { 0, 0, 1, 1, 3 };
    uint32_t id;
    int32_t status;

    if (scmi_common(msg, in, out, sizes, ARRAY_SIZE(sizes), 0x10000,
                    RK3588_SCMI_NUM_RESETS, &status)) {
        return status;
    }
    id = in->word[0];
    if (id >= RK3588_SCMI_NUM_RESETS || !scmi_resets[id]) {
        return SCMI_NOT_FOUND;
    }
    switch (msg) {
    case RESET_ATTRIBUTES:
        put_word(out, 0);               /* synchronous, no notification */
        put_word(out, UINT32_MAX);      /* latency unknown */
        put_name(out, scmi_resets[id]);
        return SCMI_SUCCESS;
    case RESET_RESET:
        if (in->word[1] & 1) {
            return SCMI_NOT_SUPPORTED;  /* autonomous: assert and deassert */
        }
        s->asserted[id] = in->word[1] & 2;
        return SCMI_SUCCESS;
    }
    g_assert_not_reached();
}

static int32_t scmi_dispatch(Rk3588ScmiState *s, uint32_t header,
                             const ScmiPayload *in, ScmiPayload *out)
{
    uint32_t msg = extract32(header, 0, 8);

    switch (extract32(header, 10, 8)) {
    case PROTO_BASE:
        return scmi_base(msg, in, out);
    case PROTO_CLOCK:
        return scmi_clock(s, msg, in, out);
    case PROTO_RESET:
        return scmi_reset(s, msg, in, out);
    default:
        return SCMI_NOT_SUPPORTED;
    }
}

/* Handle the message that is in shared memory, and free the channel */
static void scmi_ring(Rk3588ScmiState *s)
{
    uint8_t sh[RK3588_SCMI_SHMEM_SIZE];
    ScmiPayload in = {}, out = {};
    uint32_t header, length;
    int32_t status;

    address_space_read(&s->as, s->shmem, MEMTXATTRS_UNSPECIFIED, sh,
                       sizeof(sh));
    if (ldl_le_p(sh + SHMEM_STATUS) & (SHMEM_STATUS_FREE |
                                       SHMEM_STATUS_ERROR)) {
        qemu_log_mask(LOG_GUEST_ERROR, "rk3588-scmi: rung with no message\n");
        return;
    }
    header = ldl_le_p(sh + SHMEM_HEADER);
    length = ldl_le_p(sh + SHMEM_LENGTH);
    if (length < 4 || length % 4 || length - 4 > sizeof(in.word)) {
        status = SCMI_PROTOCOL_ERROR;
    } else {
        in.num = (length - 4) / 4;
        for (int i = 0; i < in.num; i++) {
            in.word[i] = ldl_le_p(sh + SHMEM_PAYLOAD + i * 4);
        }
        put_word(&out, 0);
        status = scmi_dispatch(s, header, &in, &out);
    }
    /* a kernel that lists clocks and resets meets many that are not there */
    if (status && status != SCMI_NOT_FOUND) {
        qemu_log_mask(LOG_UNIMP, "rk3588-scmi: protocol %02x message %x: %d\n",
                      extract32(header, 10, 8), extract32(header, 0, 8),
                      status);
    }
    if (status) {
        out.num = 1;
    }
    out.word[0] = status;
    for (int i = 0; i < out.num; i++) {
        stl_le_p(sh + SHMEM_PAYLOAD + i * 4, out.word[i]);
    }
    stl_le_p(sh + SHMEM_LENGTH, 4 + out.num * 4);
    stl_le_p(sh + SHMEM_STATUS, SHMEM_STATUS_FREE);
    address_space_write(&s->as, s->shmem, MEMTXATTRS_UNSPECIFIED, sh,
                        sizeof(sh));
}

bool rk3588_scmi_smc(ARMCPU *cpu, void *opaque)
{
    CPUARMState *env = &cpu->env;

    if (!is_a64(env)) {
        return false;
    }
    /*
     * QEMU's PSCI does not know SMCCC_VERSION. Without it a kernel takes the
     * firmware for SMCCC 1.0 and never makes an SCMI call.
     */
    switch ((uint32_t)env->xregs[0]) {
    case SMC_PSCI_FEATURES:
        if ((uint32_t)env->xregs[1] != SMC_SMCCC_VERSION) {
            return false;
        }
        env->xregs[0] = 0;
        return true;
    case SMC_SMCCC_VERSION:
        env->xregs[0] = SMCCC_1_2;
        return true;
    case SMC_SCMI:
        scmi_ring(opaque);
        env->xregs[0] = 0;
        return true;
    default:
        return false;
    }
}

static void scmi_set_doorbell(Object *obj, bool value, Error **errp)
{
    if (value) {
        scmi_ring(RK3588_SCMI(obj));
    }
}

static void scmi_reset_hold(Object *obj, ResetType type)
{
    Rk3588ScmiState *s = RK3588_SCMI(obj);
    uint8_t sh[RK3588_SCMI_SHMEM_SIZE] = {};

    for (int i = 0; i < RK3588_SCMI_NUM_CLOCKS; i++) {
        s->rate[i] = scmi_clocks[i].rate;
        s->enabled[i] = true;
    }
    memset(s->asserted, 0, sizeof(s->asserted));
    /* a kernel waits for the channel to be free before its first message */
    stl_le_p(sh + SHMEM_STATUS, SHMEM_STATUS_FREE);
    address_space_write(&s->as, s->shmem, MEMTXATTRS_UNSPECIFIED, sh,
                        sizeof(sh));
}

static void scmi_realize(DeviceState *dev, Error **errp)
{
    Rk3588ScmiState *s = RK3588_SCMI(dev);

    if (!s->memory) {
        error_setg(errp, "%s: needs a memory", TYPE_RK3588_SCMI);
        return;
    }
    address_space_init(&s->as, s->memory, TYPE_RK3588_SCMI);
}

static const VMStateDescription scmi_vmstate = {
    .name = TYPE_RK3588_SCMI,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64_ARRAY(rate, Rk3588ScmiState, RK3588_SCMI_NUM_CLOCKS),
        VMSTATE_BOOL_ARRAY(enabled, Rk3588ScmiState, RK3588_SCMI_NUM_CLOCKS),
        VMSTATE_BOOL_ARRAY(asserted, Rk3588ScmiState, RK3588_SCMI_NUM_RESETS),
        VMSTATE_END_OF_LIST()
    },
};

static const Property scmi_properties[] = {
    DEFINE_PROP_LINK("memory", Rk3588ScmiState, memory, TYPE_MEMORY_REGION,
                     MemoryRegion *),
    DEFINE_PROP_UINT64("shmem", Rk3588ScmiState, shmem, 0x10f000),
};

static void scmi_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "RK3588 firmware: SCMI over SMC";
    dc->realize = scmi_realize;
    dc->vmsd = &scmi_vmstate;
    dc->user_creatable = false;
    RESETTABLE_CLASS(oc)->phases.hold = scmi_reset_hold;
    device_class_set_props(dc, scmi_properties);
    object_class_property_add_bool(oc, "doorbell", NULL, scmi_set_doorbell);
}

static const TypeInfo scmi_types[] = {
    {
        .name = TYPE_RK3588_SCMI,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(Rk3588ScmiState),
        .class_init = scmi_class_init,
    },
};

DEFINE_TYPES(scmi_types)
