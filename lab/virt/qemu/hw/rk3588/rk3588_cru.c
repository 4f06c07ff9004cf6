/*
 * RK3588 clock and reset unit: registers as drivers/clk/rockchip/clk-rk3588.c
 * and rst-rk3588.c in Linux use them.
 *
 * Clocks do not tick here. What has an effect: a PLL that is powered up
 * locks, the gates and soft resets of the three NPU cores drive lines to the
 * cores and their IOMMUs, and the global soft reset resets the machine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "hw/irq.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_cru.h"
#include "hw/rk3588/rk_regfile.h"
#include "migration/vmstate.h"
#include "system/runstate.h"

/* Offsets of a PLL's registers from its first one */
#define PLLCON0           0x00      /* 9:0 m */
#define PLLCON1           0x04      /* 5:0 p, 8:6 s, 13 power down */
#define PLLCON2           0x08      /* 15:0 k */
#define PLLCON6           0x18      /* 15 lock */
#define PLLCON1_PWRDOWN   BIT(13)
#define PLLCON6_LOCK      BIT(15)

#define CLKSEL(n)         (0x300 + (n) * 4)
#define CLKGATE(n)        (0x800 + (n) * 4)
#define SOFTRST(n)        (0xa00 + (n) * 4)
#define GLB_SRST_FST      0xc08
#define GLB_SRST_SND      0xc0c
#define GLB_SRST_FST_KEY  0xfdb9
#define GLB_SRST_SND_KEY  0xeca8
#define PMU_CLKSEL(n)     (0x30300 + (n) * 4)

/* PLLs and what boot firmware leaves in them; fout = 24 MHz * m / p / 2^s */
static const struct {
    uint32_t base;
    uint16_t p, m, s, k;
} cru_plls[] = {
    { 0x00160, 2, 198, 1, 0 },          /* V0PLL   1188 MHz */
    { 0x00180, 2, 262, 2, 9437 },       /* AUPLL    786.432 MHz */
    { 0x001a0, 2, 250, 1, 0 },          /* CPLL    1500 MHz */
    { 0x001c0, 2, 198, 1, 0 },          /* GPLL    1188 MHz */
    { 0x001e0, 3, 425, 2, 0 },          /* NPLL     850 MHz */
    { 0x08200, 3, 550, 2, 0 },          /* PPLL    1100 MHz */
    { 0x50000, 2, 336, 2, 0 },          /* B0PLL   1008 MHz */
    { 0x52020, 2, 336, 2, 0 },          /* B1PLL   1008 MHz */
    { 0x58040, 2, 272, 2, 0 },          /* LPLL     816 MHz */
};

/* Mode multiplexers: every PLL in normal mode */
static const struct {
    uint32_t offset, value;
} cru_modes[] = {
    { 0x00280, 0x555 }, { 0x50280, 1 }, { 0x52280, 1 }, { 0x58280, 1 },
};

/* Fractional dividers: numerator and denominator fill the word, no mask */
static const uint32_t cru_fractional[] = {
    CLKSEL(25), CLKSEL(27), CLKSEL(29), CLKSEL(31), CLKSEL(33), CLKSEL(35),
    CLKSEL(42), CLKSEL(44), CLKSEL(46), CLKSEL(48), CLKSEL(50), CLKSEL(52),
    CLKSEL(54), CLKSEL(56), CLKSEL(58), CLKSEL(119), CLKSEL(121), CLKSEL(123),
    CLKSEL(125), CLKSEL(130), CLKSEL(139), CLKSEL(141), CLKSEL(145),
    CLKSEL(147), CLKSEL(149), CLKSEL(151), CLKSEL(154), CLKSEL(156),
    PMU_CLKSEL(4), PMU_CLKSEL(6), PMU_CLKSEL(8),
};

/*
 * A core's bus interface needs aclk_npuN and hclk_npuN, hence their parents
 * clk_npu_dsu0 and hclk_npu_root. pclk_npu_root is not among them: Linux
 * resumes a core's IOMMU, which sits behind the same interface, before any
 * driver has enabled pclk_npu_root, and that works on boards.
 */
typedef struct CruBit {
    uint8_t con, bit;
} CruBit;

static const CruBit cru_npu_gate_root[] = {
    { 29, 0 }, { 29, 1 },               /* hclk_npu_root, clk_npu_dsu0 */
};

static const CruBit cru_npu_gate[RK3588_CRU_NUM_NPU][2] = {
    { { 30, 6 }, { 30, 8 } },           /* aclk_npu0, hclk_npu0 */
    { { 27, 0 }, { 27, 2 } },
    { { 28, 0 }, { 28, 2 } },
};

static const CruBit cru_npu_srst[RK3588_CRU_NUM_NPU][2] = {
    { { 30, 6 }, { 30, 8 } },           /* srst_a_rknn0, srst_h_rknn0 */
    { { 27, 0 }, { 27, 2 } },
    { { 28, 0 }, { 28, 2 } },
};

static bool cru_any(Rk3588CruState *s, uint32_t base, const CruBit *bits,
                    int num)
{
    for (int i = 0; i < num; i++) {
        if (s->regs[base / 4 + bits[i].con] & BIT(bits[i].bit)) {
            return true;
        }
    }
    return false;
}

static void cru_update_npu(Rk3588CruState *s)
{
    bool root_off = cru_any(s, CLKGATE(0), cru_npu_gate_root,
                            ARRAY_SIZE(cru_npu_gate_root));

    for (int i = 0; i < RK3588_CRU_NUM_NPU; i++) {
        bool off = cru_any(s, CLKGATE(0), cru_npu_gate[i],
                           ARRAY_SIZE(cru_npu_gate[i]));

        qemu_set_irq(s->clock_off[i], root_off || off);
        qemu_set_irq(s->reset[i], cru_any(s, SOFTRST(0), cru_npu_srst[i],
                                          ARRAY_SIZE(cru_npu_srst[i])));
    }
}

static bool cru_has_write_mask(hwaddr off)
{
    for (int i = 0; i < ARRAY_SIZE(cru_fractional); i++) {
        if (off == cru_fractional[i]) {
            return false;
        }
    }
    return true;
}

static uint64_t cru_read(void *opaque, hwaddr off, unsigned size)
{
    Rk3588CruState *s = opaque;
    uint32_t val = s->regs[off / 4];

    for (int i = 0; i < ARRAY_SIZE(cru_plls); i++) {
        uint32_t base = cru_plls[i].base;

        if (off == base + PLLCON6) {
            bool down = s->regs[(base + PLLCON1) / 4] & PLLCON1_PWRDOWN;

            return down ? val & ~PLLCON6_LOCK : val | PLLCON6_LOCK;
        }
    }
    return val;
}

static void cru_write(void *opaque, hwaddr off, uint64_t val, unsigned size)
{
    Rk3588CruState *s = opaque;

    switch (off) {
    case GLB_SRST_FST:
    case GLB_SRST_SND:
        if ((val & 0xffff) == (off == GLB_SRST_FST ? GLB_SRST_FST_KEY
                                                   : GLB_SRST_SND_KEY)) {
            qemu_system_reset_request(SHUTDOWN_CAUSE_GUEST_RESET);
        } else {
            qemu_log_mask(LOG_GUEST_ERROR, "rk3588-cru: global soft reset "
                          "[%03" HWADDR_PRIx "] = %08x: wrong key\n",
                          off, (uint32_t)val);
        }
        return;
    }
    if (cru_has_write_mask(off)) {
        s->regs[off / 4] = rk_hiword_update(s->regs[off / 4], val);
    } else {
        s->regs[off / 4] = val;
    }
    if ((off >= CLKGATE(27) && off <= CLKGATE(30)) ||
        (off >= SOFTRST(27) && off <= SOFTRST(30))) {
        cru_update_npu(s);
    }
}

static const MemoryRegionOps cru_ops = {
    .read = cru_read,
    .write = cru_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid.min_access_size = 4,
    .valid.max_access_size = 4,
};

static void cru_reset_enter(Object *obj, ResetType type)
{
    Rk3588CruState *s = RK3588_CRU(obj);

    memset(s->regs, 0, sizeof(s->regs));
    for (int i = 0; i < ARRAY_SIZE(cru_plls); i++) {
        uint32_t *pll = &s->regs[cru_plls[i].base / 4];

        pll[PLLCON0 / 4] = cru_plls[i].m;
        pll[PLLCON1 / 4] = cru_plls[i].p | cru_plls[i].s << 6;
        pll[PLLCON2 / 4] = cru_plls[i].k;
    }
    for (int i = 0; i < ARRAY_SIZE(cru_modes); i++) {
        s->regs[cru_modes[i].offset / 4] = cru_modes[i].value;
    }
}

static void cru_reset_hold(Object *obj, ResetType type)
{
    cru_update_npu(RK3588_CRU(obj));
}

static int cru_post_load(void *opaque, int version_id)
{
    cru_update_npu(opaque);
    return 0;
}

static void cru_init(Object *obj)
{
    Rk3588CruState *s = RK3588_CRU(obj);

    memory_region_init_io(&s->iomem, obj, &cru_ops, s, TYPE_RK3588_CRU,
                          RK3588_CRU_SIZE);
    sysbus_init_mmio(SYS_BUS_DEVICE(obj), &s->iomem);
    qdev_init_gpio_out_named(DEVICE(obj), s->clock_off, RK3588_CRU_CLOCK_OFF,
                             RK3588_CRU_NUM_NPU);
    qdev_init_gpio_out_named(DEVICE(obj), s->reset, RK3588_CRU_RESET,
                             RK3588_CRU_NUM_NPU);
}

static const VMStateDescription cru_vmstate = {
    .name = TYPE_RK3588_CRU,
    .version_id = 1,
    .minimum_version_id = 1,
    .post_load = cru_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32_ARRAY(regs, Rk3588CruState, RK3588_CRU_SIZE / 4),
        VMSTATE_END_OF_LIST()
    },
};

static void cru_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    dc->desc = "RK3588 clock and reset unit";
    dc->vmsd = &cru_vmstate;
    rc->phases.enter = cru_reset_enter;
    rc->phases.hold = cru_reset_hold;
}

static const TypeInfo cru_types[] = {
    {
        .name = TYPE_RK3588_CRU,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(Rk3588CruState),
        .instance_init = cru_init,
        .class_init = cru_class_init,
    },
};

DEFINE_TYPES(cru_types)
