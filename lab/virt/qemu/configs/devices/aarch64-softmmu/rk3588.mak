# SPDX-License-Identifier: GPL-2.0-or-later
# The rk3588 virtual board and the virtio devices that it may carry, nothing else
CONFIG_RK3588=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_SERIAL=y
