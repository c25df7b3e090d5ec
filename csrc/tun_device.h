/* tun_device.h - the TUN device: open, offload probe, read, write. The only file that knows its errnos. */
#pragma once

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5 /* Linux 6.2 */
#endif

enum { TUN_NAME_SIZE = 16 }; /* IFNAMSIZ */

struct tun_device {
    int fd;           /* borrowed */
    bool vnet_header; /* every packet read or written has a struct virtio_net_hdr in front */
    unsigned offloads; /* OFFLOAD_TSO, OFFLOAD_USO: those in use */
};

/* Opens a TUN device without packet information, non-blocking and close-on-exec. `pattern` is a name or contains
 * one %d, which the kernel replaces by the first free number; name[] receives the name. vnet_header is fixed for the
 * life of the device; without it there are no offloads. Returns the descriptor or -errno: -EPERM (no CAP_NET_ADMIN),
 * -ENOENT (no /dev/net/tun), -EBUSY (the name is taken), -EINVAL (a kernel without vnet headers), -ENAMETOOLONG. */
int tun_device_open(const char *pattern, bool vnet_header, char name[TUN_NAME_SIZE]);

/* The name of an open device and whether it has vnet headers. 0 or -errno: -EBADFD (the device was deleted), -ENOTTY
 * or -EINVAL (not a TUN device). */
int tun_device_identify(int fd, char name[TUN_NAME_SIZE], bool *vnet_header);

/* Switches on those of the wanted offloads that the kernel has, and the others off. 0 or -errno. */
int tun_device_attach(struct tun_device *tun, int fd, unsigned wanted);

/* Reads one packet or superpacket; without vnet headers *header is all zero. Returns its length; -EAGAIN when there is
 * none; any other -errno means the device is gone, unless tun_device_lost_packet. */
ssize_t tun_device_read(const struct tun_device *tun, struct virtio_net_hdr *header, uint8_t *buffer,
                        size_t size);

/* Writes one packet or superpacket. iov[0] is its struct virtio_net_hdr, left out if the device takes none.
 * 0 or -errno; tun_device_is_gone distinguishes a lost device from a lost packet. */
int tun_device_write(const struct tun_device *tun, const struct iovec *iov, size_t count);

/* Whether this read error lost one packet, and the device still works. */
bool tun_device_lost_packet(int error);

/* Whether this write error means that the device is gone (deleted), not that it refused one packet. */
bool tun_device_is_gone(int error);

/* Whether this write error may be about the superpacket, so that its packets may pass one by one. */
bool tun_device_refused_superpacket(int error);
