/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rockchip serial flash controller.
 *
 * Behaviour follows what linux drivers/spi/spi-rockchip-sfc.c relies on; the
 * register names are the driver's. A command is on its way to the chip when
 * CMD is written, or ADDR if it has an address; its data bytes move when the
 * FIFO is accessed or the DMA is triggered, in no time.
 *
 * Not modelled: clocks, the delay line, the data widths (dual and quad
 * transfers move the same bytes), and a second chip.
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "hw/irq.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk_sfc.h"
#include "migration/vmstate.h"
#include "system/dma.h"

#define SFC_CTRL        0x00
#define SFC_IMR         0x04
#define SFC_ICLR        0x08
#define SFC_RCVR        0x10
#define SFC_ABIT        0x18
#define SFC_ISR         0x1c
#define SFC_FSR         0x20
#define SFC_SR          0x24
#define SFC_RISR        0x28
#define SFC_VER         0x2c
#define SFC_DMA_TRIGGER 0x80
#define SFC_DMA_ADDR    0x84
#define SFC_LEN_CTRL    0x88
#define SFC_LEN_EXT     0x8c
#define SFC_CMD         0x100
#define SFC_ADDR        0x104
#define SFC_DATA        0x108

#define INT_TX_EMPTY        BIT(3)
#define INT_TRAN_FINISH     BIT(4)
#define INT_BUS_ERR         BIT(5)
#define INT_DMA             BIT(7)
#define INT_ALL             0xff

#define FSR_TX_IS_EMPTY     BIT(1)
#define FSR_RX_IS_EMPTY     BIT(2)
#define FSR_TXLV_SHIFT      8
#define FSR_RXLV_SHIFT      16
#define FIFO_WORDS          16

#define VERSION             5
#define LEN_CTRL_TRB_SEL    BIT(0)
#define DMA_TRIGGER_START   BIT(0)
#define RCVR_RESET          BIT(0)

#define CMD_OPCODE(cmd)     extract32(cmd, 0, 8)
#define CMD_DUMMY(cmd)      extract32(cmd, 8, 4)
#define CMD_IS_WRITE(cmd)   extract32(cmd, 12, 1)
#define CMD_ADDR(cmd)       extract32(cmd, 14, 2)
#define CMD_TRAN_BYTES(cmd) extract32(cmd, 16, 14)
#define CMD_CS(cmd)         extract32(cmd, 30, 2)
#define ADDR_24BITS         1
#define ADDR_32BITS         2
#define ADDR_XBITS          3

#define OPCODE_RDSFDP       0x5a

static uint32_t *sfc_reg(RkSfcState *s, hwaddr off)
{
    return &s->regs[off / 4];
}

static void sfc_update_irq(RkSfcState *s)
{
    qemu_set_irq(s->irq, !!(s->raw_status & ~*sfc_reg(s, SFC_IMR)));
}

static void sfc_raise(RkSfcState *s, uint32_t bits)
{
    s->raw_status |= bits;
    sfc_update_irq(s);
}

static void sfc_select(RkSfcState *s, bool on)
{
    qemu_set_irq(s->cs, !on);
}

/* ------------------------------- commands ------------------------------ */

static void sfc_finish(RkSfcState *s)
{
    sfc_select(s, false);
    s->remaining = 0;
    sfc_raise(s, INT_TRAN_FINISH);
}

static unsigned int sfc_address_bytes(RkSfcState *s, uint32_t cmd)
{
    switch (CMD_ADDR(cmd)) {
    case ADDR_24BITS:
        return 3;
    case ADDR_32BITS:
        return 4;
    case ADDR_XBITS:
        return (extract32(*sfc_reg(s, SFC_ABIT), 0, 5) + 1) / 8;
    default:
        return 0;
    }
}

/*
 * QEMU's flash chips take one transfer for each dummy clock of a fast read,
 * and whole bytes for the SFDP table.
 */
static unsigned int sfc_dummy_transfers(uint32_t cmd)
{
    return CMD_OPCODE(cmd) == OPCODE_RDSFDP ? CMD_DUMMY(cmd) / 8
                                            : CMD_DUMMY(cmd);
}

static void sfc_start(RkSfcState *s)
{
    uint32_t cmd = *sfc_reg(s, SFC_CMD);
    unsigned int i, n = sfc_address_bytes(s, cmd);

    s->wait_address = false;
    s->remaining = *sfc_reg(s, SFC_LEN_CTRL) & LEN_CTRL_TRB_SEL
                   ? *sfc_reg(s, SFC_LEN_EXT) : CMD_TRAN_BYTES(cmd);
    if (CMD_CS(cmd)) {
        qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: command 0x%02x to chip %u, "
                      "which is not there\n", CMD_OPCODE(cmd), CMD_CS(cmd));
    }
    sfc_select(s, CMD_CS(cmd) == 0);
    ssi_transfer(s->spi, CMD_OPCODE(cmd));
    for (i = n; i > 0; i--) {
        ssi_transfer(s->spi, extract32(*sfc_reg(s, SFC_ADDR), (i - 1) * 8, 8));
    }
    for (i = sfc_dummy_transfers(cmd); i > 0; i--) {
        ssi_transfer(s->spi, 0);
    }
    if (!s->remaining) {
        sfc_finish(s);
    }
}

static void sfc_command(RkSfcState *s)
{
    if (s->remaining) {
        qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: command 0x%02x while %u bytes "
                      "of the one before have not moved\n",
                      CMD_OPCODE(*sfc_reg(s, SFC_CMD)), s->remaining);
        sfc_select(s, false);
    }
    s->remaining = 0;
    s->wait_address = sfc_address_bytes(s, *sfc_reg(s, SFC_CMD)) > 0;
    if (!s->wait_address) {
        sfc_start(s);
    }
}

/* Up to @len data bytes of the command; those beyond its end are not moved */
static void sfc_move(RkSfcState *s, uint8_t *buf, unsigned int len)
{
    bool write = CMD_IS_WRITE(*sfc_reg(s, SFC_CMD));
    unsigned int i, n = MIN(len, s->remaining);

    for (i = 0; i < n; i++) {
        uint8_t in = ssi_transfer(s->spi, write ? buf[i] : 0);

        if (!write) {
            buf[i] = in;
        }
    }
    if (n) {
        s->remaining -= n;
        if (!s->remaining) {
            sfc_finish(s);
        }
    }
}

static void sfc_dma(RkSfcState *s)
{
    bool write = CMD_IS_WRITE(*sfc_reg(s, SFC_CMD));
    dma_addr_t addr = *sfc_reg(s, SFC_DMA_ADDR);
    uint8_t buf[512];

    while (s->remaining) {
        uint32_t n = MIN(s->remaining, sizeof(buf));
        MemTxResult res = MEMTX_OK;

        if (write) {
            res = dma_memory_read(&address_space_memory, addr, buf, n,
                                  MEMTXATTRS_UNSPECIFIED);
        }
        if (res == MEMTX_OK) {
            sfc_move(s, buf, n);
        }
        if (!write) {
            res = dma_memory_write(&address_space_memory, addr, buf, n,
                                   MEMTXATTRS_UNSPECIFIED);
        }
        if (res != MEMTX_OK) {
            qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: no memory for the DMA at "
                          "0x%08" PRIx64 "\n", (uint64_t)addr);
            sfc_finish(s);
            sfc_raise(s, INT_BUS_ERR);
            return;
        }
        addr += n;
    }
    sfc_raise(s, INT_DMA);
}

/* ------------------------------- registers ----------------------------- */

static uint32_t sfc_fifo_status(RkSfcState *s)
{
    bool write = CMD_IS_WRITE(*sfc_reg(s, SFC_CMD));
    uint32_t words = write ? 0 : MIN(DIV_ROUND_UP(s->remaining, 4),
                                     FIFO_WORDS);

    return FSR_TX_IS_EMPTY | (words ? 0 : FSR_RX_IS_EMPTY) |
           FIFO_WORDS << FSR_TXLV_SHIFT | words << FSR_RXLV_SHIFT;
}

static uint64_t sfc_read(void *opaque, hwaddr off, unsigned int size)
{
    RkSfcState *s = opaque;
    uint8_t data[4] = { 0 };

    switch (off) {
    case SFC_ICLR:
    case SFC_RCVR:                  /* the reset is over at once */
    case SFC_SR:                    /* and so is a command: idle */
    case SFC_DMA_TRIGGER:
        return 0;
    case SFC_ISR:
        return s->raw_status & ~*sfc_reg(s, SFC_IMR);
    case SFC_RISR:
        return s->raw_status;
    case SFC_FSR:
        return sfc_fifo_status(s);
    case SFC_VER:
        return VERSION;
    case SFC_DATA:
        if (!s->remaining || CMD_IS_WRITE(*sfc_reg(s, SFC_CMD))) {
            qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: DATA is read and there "
                          "is none\n");
        } else {
            sfc_move(s, data, sizeof(data));
        }
        return ldl_le_p(data);
    default:
        return *sfc_reg(s, off);
    }
}

static void sfc_reset_fsm(RkSfcState *s)
{
    sfc_select(s, false);
    s->remaining = 0;
    s->wait_address = false;
}

static void sfc_write(void *opaque, hwaddr off, uint64_t value,
                      unsigned int size)
{
    RkSfcState *s = opaque;
    uint8_t data[4];

    switch (off) {
    case SFC_ICLR:
        s->raw_status &= ~(uint32_t)value;
        sfc_update_irq(s);
        break;
    case SFC_RCVR:
        if (value & RCVR_RESET) {
            sfc_reset_fsm(s);
        }
        break;
    case SFC_ISR:
    case SFC_FSR:
    case SFC_SR:
    case SFC_RISR:
    case SFC_VER:
        qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: write of read-only register "
                      "0x%02x\n", (unsigned int)off);
        break;
    case SFC_DMA_TRIGGER:
        if (value & DMA_TRIGGER_START) {
            sfc_dma(s);
        }
        break;
    case SFC_DATA:
        stl_le_p(data, value);
        if (!s->remaining || !CMD_IS_WRITE(*sfc_reg(s, SFC_CMD))) {
            qemu_log_mask(LOG_GUEST_ERROR, "rk-sfc: DATA is written and no "
                          "command takes it\n");
        } else {
            sfc_move(s, data, sizeof(data));
        }
        break;
    case SFC_IMR:
        *sfc_reg(s, off) = value;
        sfc_update_irq(s);
        break;
    case SFC_CMD:
        *sfc_reg(s, off) = value;
        sfc_command(s);
        break;
    case SFC_ADDR:
        *sfc_reg(s, off) = value;
        if (s->wait_address) {
            sfc_start(s);
        }
        break;
    default:
        *sfc_reg(s, off) = value;
        break;
    }
}

static const MemoryRegionOps sfc_ops = {
    .read = sfc_read,
    .write = sfc_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 4, .max_access_size = 4 },
};

static void sfc_reset_hold(Object *obj, ResetType type)
{
    RkSfcState *s = RK_SFC(obj);

    memset(s->regs, 0, sizeof(s->regs));
    *sfc_reg(s, SFC_IMR) = INT_ALL;
    s->raw_status = 0;
    sfc_reset_fsm(s);
    sfc_update_irq(s);
}

static void sfc_init(Object *obj)
{
    RkSfcState *s = RK_SFC(obj);
    SysBusDevice *sbd = SYS_BUS_DEVICE(obj);

    memory_region_init_io(&s->iomem, obj, &sfc_ops, s, TYPE_RK_SFC,
                          sizeof(s->regs));
    sysbus_init_mmio(sbd, &s->iomem);
    sysbus_init_irq(sbd, &s->irq);
    qdev_init_gpio_out_named(DEVICE(obj), &s->cs, "cs", 1);
    s->spi = ssi_create_bus(DEVICE(obj), "spi");
}

static const VMStateDescription sfc_vmstate = {
    .name = TYPE_RK_SFC,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32_ARRAY(regs, RkSfcState, RK_SFC_NUM_REGS),
        VMSTATE_UINT32(raw_status, RkSfcState),
        VMSTATE_UINT32(remaining, RkSfcState),
        VMSTATE_BOOL(wait_address, RkSfcState),
        VMSTATE_END_OF_LIST()
    },
};

static void sfc_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "Rockchip serial flash controller";
    dc->vmsd = &sfc_vmstate;
    RESETTABLE_CLASS(oc)->phases.hold = sfc_reset_hold;
}

static const TypeInfo sfc_types[] = {
    {
        .name = TYPE_RK_SFC,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(RkSfcState),
        .instance_init = sfc_init,
        .class_init = sfc_class_init,
    },
};

DEFINE_TYPES(sfc_types)
