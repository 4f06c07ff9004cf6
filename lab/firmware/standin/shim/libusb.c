/* SPDX-License-Identifier: MIT */
/*
 * A libusb-1.0.so.0 with the seventeen functions that rkdeveloptool uses. Transfers go over a unix socket to the
 * stand-in (lab/firmware/standin/wire.py describes the frames), so the real tool runs without USB, kernel or root.
 * Structures follow the public ABI of libusb 1.0.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

enum { LIST = 1, CONTROL, OUT, IN, CLEAR };
enum { ERROR_IO = -1, ERROR_NO_DEVICE = -4, ERROR_TIMEOUT = -7, ERROR_NO_MEM = -11, ERROR_OTHER = -99 };

struct device_descriptor {
    uint8_t bLength, bDescriptorType;
    uint16_t bcdUSB;
    uint8_t bDeviceClass, bDeviceSubClass, bDeviceProtocol, bMaxPacketSize0;
    uint16_t idVendor, idProduct, bcdDevice;
    uint8_t iManufacturer, iProduct, iSerialNumber, bNumConfigurations;
};

struct endpoint_descriptor {
    uint8_t bLength, bDescriptorType, bEndpointAddress, bmAttributes;
    uint16_t wMaxPacketSize;
    uint8_t bInterval, bRefresh, bSynchAddress;
    const unsigned char *extra;
    int extra_length;
};

struct interface_descriptor {
    uint8_t bLength, bDescriptorType, bInterfaceNumber, bAlternateSetting, bNumEndpoints;
    uint8_t bInterfaceClass, bInterfaceSubClass, bInterfaceProtocol, iInterface;
    const struct endpoint_descriptor *endpoint;
    const unsigned char *extra;
    int extra_length;
};

struct interface {
    const struct interface_descriptor *altsetting;
    int num_altsetting;
};

struct config_descriptor {
    uint8_t bLength, bDescriptorType;
    uint16_t wTotalLength;
    uint8_t bNumInterfaces, bConfigurationValue, iConfiguration, bmAttributes, MaxPower;
    const struct interface *interface;
    const unsigned char *extra;
    int extra_length;
};

/* A configuration with everything it points to, in one allocation. */
struct whole_config {
    struct config_descriptor config;
    struct interface interface;
    struct interface_descriptor setting;
    struct endpoint_descriptor endpoint[2];
};

struct libusb_device {
    uint32_t number;
    uint8_t bus, port;
    int references;
    struct device_descriptor descriptor;
    uint8_t configuration[64];
};

struct libusb_device_handle {
    struct libusb_device *device;
};

static int stream = -1;

static int all(int writing, void *data, size_t length)
{
    char *at = data;

    while (length) {
        ssize_t done = writing ? send(stream, at, length, MSG_NOSIGNAL) : recv(stream, at, length, 0);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return ERROR_NO_DEVICE;
        }
        at += done;
        length -= (size_t)done;
    }
    return 0;
}

/* One request; `room` bytes of the answer are kept in `answer`, its length is stored in `*got`. */
static int call(uint32_t kind, uint32_t number, uint32_t a, uint32_t b, unsigned timeout, void *data, uint32_t length,
                void *answer, uint32_t room, uint32_t *got)
{
    uint32_t head[6] = { kind, number, a, b, timeout, length };
    struct { int32_t status; uint32_t length; } reply;

    if (all(1, head, sizeof(head)) || (length && all(1, data, length)) || all(0, &reply, sizeof(reply))) {
        return ERROR_NO_DEVICE;
    }
    if (reply.length > room) {
        return ERROR_OTHER;
    }
    if (reply.length && all(0, answer, reply.length)) {
        return ERROR_NO_DEVICE;
    }
    if (got) {
        *got = reply.length;
    }
    return reply.status;
}

int libusb_init(void **context)
{
    const char *path = getenv("NPULAB_STANDIN_SOCKET");
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (context) {
        *context = NULL;
    }
    if (!path || strlen(path) >= sizeof(address.sun_path)) {
        return ERROR_OTHER;
    }
    strcpy(address.sun_path, path);
    stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (stream < 0 || connect(stream, (struct sockaddr *)&address, sizeof(address))) {
        return ERROR_IO;
    }
    return 0;
}

void libusb_exit(void *context)
{
    (void)context;
    if (stream >= 0) {
        close(stream);
        stream = -1;
    }
}

ssize_t libusb_get_device_list(void *context, struct libusb_device ***list)
{
    static uint8_t raw[16384];
    uint32_t length = 0, at = 0;
    size_t count = 0;
    int error = call(LIST, 0, 0, 0, 1000, NULL, 0, raw, sizeof(raw), &length);

    (void)context;
    if (error) {
        return error;
    }
    *list = calloc(length / 32 + 2, sizeof(**list));
    while (*list && at + 32 < length) {
        struct libusb_device *device = calloc(1, sizeof(*device));
        uint16_t size;

        if (!device) {
            return ERROR_NO_MEM;
        }
        memcpy(&device->number, raw + at, 4);
        device->bus = raw[at + 4];
        device->port = raw[at + 5];
        memcpy(&device->descriptor, raw + at + 12, 18);
        memcpy(&size, raw + at + 30, 2);
        memcpy(device->configuration, raw + at + 32, size < 64 ? size : 64);
        device->references = 1;
        at += 32 + size;
        at += 1 + raw[at];
        (*list)[count++] = device;
    }
    return (ssize_t)count;
}

struct libusb_device *libusb_ref_device(struct libusb_device *device)
{
    device->references++;
    return device;
}

void libusb_unref_device(struct libusb_device *device)
{
    if (device && --device->references == 0) {
        free(device);
    }
}

void libusb_free_device_list(struct libusb_device **list, int unref)
{
    for (size_t i = 0; list && list[i]; i++) {
        if (unref) {
            libusb_unref_device(list[i]);
        }
    }
    free(list);
}

int libusb_get_device_descriptor(struct libusb_device *device, struct device_descriptor *descriptor)
{
    *descriptor = device->descriptor;
    return 0;
}

int libusb_get_active_config_descriptor(struct libusb_device *device, struct config_descriptor **config)
{
    struct whole_config *whole = calloc(1, sizeof(*whole));
    const uint8_t *raw = device->configuration;

    if (!whole) {
        return ERROR_NO_MEM;
    }
    memcpy(&whole->config, raw, 9);
    memcpy(&whole->setting, raw + 9, 9);
    memcpy(&whole->endpoint[0], raw + 18, 7);
    memcpy(&whole->endpoint[1], raw + 25, 7);
    whole->setting.endpoint = whole->endpoint;
    whole->interface.altsetting = &whole->setting;
    whole->interface.num_altsetting = 1;
    whole->config.interface = &whole->interface;
    *config = &whole->config;
    return 0;
}

void libusb_free_config_descriptor(struct config_descriptor *config)
{
    free(config);
}

uint8_t libusb_get_bus_number(struct libusb_device *device)
{
    return device->bus;
}

uint8_t libusb_get_port_number(struct libusb_device *device)
{
    return device->port;
}

int libusb_open(struct libusb_device *device, struct libusb_device_handle **handle)
{
    *handle = calloc(1, sizeof(**handle));
    if (!*handle) {
        return ERROR_NO_MEM;
    }
    (*handle)->device = libusb_ref_device(device);
    return 0;
}

void libusb_close(struct libusb_device_handle *handle)
{
    if (handle) {
        libusb_unref_device(handle->device);
        free(handle);
    }
}

int libusb_claim_interface(struct libusb_device_handle *handle, int number)
{
    (void)handle;
    return number ? ERROR_OTHER : 0;
}

int libusb_reset_device(struct libusb_device_handle *handle)
{
    return call(CLEAR, handle->device->number, 0, 0, 1000, NULL, 0, NULL, 0, NULL);
}

int libusb_control_transfer(struct libusb_device_handle *handle, uint8_t type, uint8_t request, uint16_t value,
                            uint16_t index, unsigned char *data, uint16_t length, unsigned timeout)
{
    int error = call(CONTROL, handle->device->number, type | (uint32_t)request << 8, value | (uint32_t)index << 16,
                     timeout, data, length, NULL, 0, NULL);

    return error ? error : length;
}

int libusb_bulk_transfer(struct libusb_device_handle *handle, unsigned char endpoint, unsigned char *data, int length,
                         int *transferred, unsigned timeout)
{
    uint32_t got = 0;
    int error;

    if (endpoint & 0x80) {
        error = call(IN, handle->device->number, (uint32_t)length, 0, timeout, NULL, 0, data, (uint32_t)length, &got);
    } else {
        error = call(OUT, handle->device->number, 0, 0, timeout, data, (uint32_t)length, NULL, 0, NULL);
        got = error ? 0 : (uint32_t)length;
    }
    if (transferred) {
        *transferred = (int)got;
    }
    return error;
}
