# SPDX-License-Identifier: MIT
"""A small device tree of an RK3588 board: the nodes that the machine changes, and some that it must not."""

from __future__ import annotations

import subprocess
from pathlib import Path

_CPUS = "".join(
    f"""
        cpu{n}: cpu@{n:x}00 {{ device_type = "cpu"; reg = <{n << 8:#x}>; enable-method = "psci";
            compatible = "arm,cortex-a{55 if n < 4 else 76}"; }};"""
    for n in range(8)
)
_NPU = "".join(
    f"""
    npu@{base:x} {{ compatible = "rockchip,rk3588-rknn-core"; reg = <0 {base:#x} 0 0x1000>; status = "{status}";
        npu-supply = <&regulator>; sram-supply = <&regulator>; }};"""
    for base, status in ((0xFDAB0000, "okay"), (0xFDAC0000, "okay"), (0xFDAD0000, "disabled"))
)

BOARD = f"""/dts-v1/;
/ {{
    compatible = "example,board", "rockchip,rk3588";
    model = "Example board";
    #address-cells = <2>;
    #size-cells = <2>;
    interrupt-parent = <&gic>;
    aliases {{ serial2 = "/serial@feb50000"; serial9 = "/bus/serial@febc0000"; }};
    chosen {{ stdout-path = "serial2:1500000n8"; }};
    psci {{ compatible = "arm,psci-1.0"; method = "smc"; }};
    memory@0 {{ device_type = "memory"; reg = <0 0 0 0x1000>; }};
    cpus {{
        #address-cells = <1>;
        #size-cells = <0>;
        cpu-map {{ cluster0 {{ core0 {{ cpu = <&cpu0>; }}; }}; }};{_CPUS}
    }};
    gic: interrupt-controller@fe600000 {{
        compatible = "arm,gic-v3";
        reg = <0 0xfe600000 0 0x10000>, <0 0xfe680000 0 0x100000>;
        interrupt-controller;
        #interrupt-cells = <4>;
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        msi-controller@fe640000 {{ compatible = "arm,gic-v3-its"; reg = <0 0xfe640000 0 0x20000>; }};
        ppi-partitions {{
            interrupt-partition-0 {{ affinity = <&cpu0 &cpu1 &cpu2 &cpu3>; }};
            interrupt-partition-1 {{ affinity = <&cpu4 &cpu5 &cpu6 &cpu7>; }};
        }};
    }};
    reserved-memory {{
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        shmem@10f000 {{ compatible = "arm,scmi-shmem"; reg = <0 0x10f000 0 0x100>; no-map; }};
        camera: camera-cma {{ compatible = "shared-dma-pool"; size = <0 0x1000000>; }};
        kept: kept-cma {{ compatible = "shared-dma-pool"; size = <0 0x100000>; }};
    }};
    regulator: regulator {{ compatible = "regulator-fixed"; regulator-name = "npu"; }};
    display-subsystem {{ compatible = "rockchip,display-subsystem"; }};
    clock-controller@fd7c0000 {{ compatible = "rockchip,rk3588-cru"; reg = <0 0xfd7c0000 0 0x5c000>;
        memory-region = <&kept>; }};
    power-management@fd8d8000 {{
        compatible = "rockchip,rk3588-pmu", "syscon", "simple-mfd";
        reg = <0 0xfd8d8000 0 0x400>;
        power-controller {{
            compatible = "rockchip,rk3588-power-controller";
            #address-cells = <1>;
            #size-cells = <0>;
            power-domain@8 {{ reg = <8>; domain-supply = <&regulator>; #address-cells = <1>; #size-cells = <0>;
                power-domain@9 {{ reg = <9>; domain-supply = <&regulator>; }}; }};
        }};
    }};{_NPU}
    serial@feb50000 {{ compatible = "snps,dw-apb-uart"; reg = <0 0xfeb50000 0 0x100>; }};
    bus {{
        compatible = "simple-bus";
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        serial@febc0000 {{ compatible = "snps,dw-apb-uart"; reg = <0 0xfebc0000 0 0x100>; }};
    }};
    i2c@fd880000 {{ compatible = "rockchip,rk3399-i2c"; reg = <0 0xfd880000 0 0x1000>; status = "okay"; }};
    i2c@fea90000 {{ compatible = "rockchip,rk3399-i2c"; reg = <0 0xfea90000 0 0x1000>; status = "disabled"; }};
    usb@fc000000 {{ compatible = "rockchip,rk3588-dwc3", "snps,dwc3"; reg = <0 0xfc000000 0 0x400000>;
        phys = <&usbphy>; phy-names = "usb2-phy"; }};
    syscon@fd5d0000 {{
        compatible = "rockchip,rk3588-usb2phy-grf", "syscon", "simple-mfd";
        reg = <0 0xfd5d0000 0 0x4000>;
        #address-cells = <1>;
        #size-cells = <1>;
        usbphy: usb2phy@0 {{ compatible = "rockchip,rk3588-usb2phy"; reg = <0 0x10>; #phy-cells = <0>; }};
    }};
    camera@fdee0000 {{ reg = <0 0xfdee0000 0 0x6000>; memory-region = <&camera>; }};
    pinctrl {{
        compatible = "rockchip,rk3588-pinctrl";
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        gpio@fd8a0000 {{ compatible = "rockchip,gpio-bank"; reg = <0 0xfd8a0000 0 0x100>; }};
    }};
}};
"""


def compile_tree(source: str, target: Path) -> Path:
    """Compile dts text with dtc."""
    command = ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(target)]
    subprocess.run(command, input=source.encode(), check=True)
    return target


def decompile(blob: bytes) -> str:
    """dts text of a compiled tree (padding behind it is left out)."""
    size = int.from_bytes(blob[4:8], "big")
    command = ["dtc", "-q", "-I", "dtb", "-O", "dts", "-"]
    return subprocess.run(command, input=blob[:size], check=True, capture_output=True).stdout.decode()


def node(text: str, name: str) -> str:
    """The text of the first node of that name, with what is inside it."""
    start = text.index(f"{name} {{")
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0 and text[position] == "}":
            return text[start : position + 1]
    raise ValueError(f"node {name} does not end")
