// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tells how many references the IOMMU group of the first NPU core has, each time its parameter is read:
 * /sys/module/groupref/parameters/references. For tests only.
 *
 * iommu_group_get() takes its reference on the group's "devices" object (drivers/iommu/iommu.c); struct iommu_group is
 * private, its first two members are repeated here.
 */

#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_platform.h>
#include <linux/platform_device.h>

struct group_head {
	struct kobject kobj;
	struct kobject *devices_kobj;
};

static int references_get(char *buffer, const struct kernel_param *kp)
{
	struct platform_device *pdev;
	struct device_node *node;
	struct iommu_group *group;
	unsigned int count = 0;

	node = of_find_compatible_node(NULL, NULL, "rockchip,rk3588-rknn-core");
	pdev = of_find_device_by_node(node);
	of_node_put(node);
	if (!pdev)
		return -ENODEV;

	group = iommu_group_get(&pdev->dev);
	if (group) {
		/* without the one just taken */
		count = kref_read(&((struct group_head *)group)->devices_kobj->kref) - 1;
		iommu_group_put(group);
	}
	put_device(&pdev->dev);

	return sysfs_emit(buffer, "%u\n", count);
}

static const struct kernel_param_ops references_ops = {
	.get = references_get,
};
module_param_cb(references, &references_ops, NULL, 0444);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("References to the IOMMU group of the first NPU core");
