/* SPDX-License-Identifier: MIT */
#define DRM_ROCKET_CREATE_BO 0x00
#define DRM_ROCKET_SUBMIT 0x01
#define DRM_IOCTL_ROCKET_CREATE_BO DRM_IOWR(DRM_COMMAND_BASE + DRM_ROCKET_CREATE_BO, struct drm_rocket_create_bo)
#define DRM_IOCTL_ROCKET_SUBMIT DRM_IOW(DRM_COMMAND_BASE + DRM_ROCKET_SUBMIT, struct drm_rocket_submit)
struct drm_rocket_create_bo {
	/* how large */
	__u32 size;
	__u32 handle;
	__u64 dma_address;
	__u64 offset;
};
struct drm_rocket_submit { __u64 jobs; __u32 job_count; __u32 job_struct_size; __u64 reserved; };
