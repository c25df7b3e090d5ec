/* tun_device.h - the TUN device: open, read a packet, write a packet. The only file that knows its errnos. */
#ifndef FLANNEL_UDP_TUN_DEVICE_H
#define FLANNEL_UDP_TUN_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { TUN_NAME_SIZE = 16 }; /* IFNAMSIZ */

/* Opens a TUN device without packet information, non-blocking and close-on-exec. `pattern` is a name or holds
 * one %d, which the kernel replaces by the first free number; the name it got goes to name[].
 * The descriptor or -errno: -EPERM (no CAP_NET_ADMIN), -ENOENT (no /dev/net/tun), -EBUSY (the name is taken),
 * -ENAMETOOLONG. */
int tun_device_open(const char *pattern, char name[TUN_NAME_SIZE]);

/* Reads one packet. Its length; -EAGAIN when there is none; any other -errno means the device is gone. */
ssize_t tun_device_read(int fd, uint8_t *buffer, size_t size);

/* Writes one packet. 0 or -errno; tun_device_is_gone tells a lost device from a lost packet. */
int tun_device_write(int fd, const uint8_t *packet, size_t length);

/* Whether this write error means the device itself is gone (deleted), not that it took no packet now. */
bool tun_device_is_gone(int error);

#endif
