/* tun_device.h - the TUN device: open, offload probe, read, write. The only file that knows its errnos. */
#ifndef FLANNEL_UDP_TUN_DEVICE_H
#define FLANNEL_UDP_TUN_DEVICE_H

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
    unsigned offloads; /* OFFLOAD_TSO, OFFLOAD_USO: what the kernel has agreed to */
};

/* Opens a TUN device without packet information, non-blocking and close-on-exec. `pattern` is a name or holds
 * one %d, which the kernel replaces by the first free number; the name it got goes to name[].
 * vnet_header is fixed for the life of the device; without it there are no offloads.
 * The descriptor or -errno: -EPERM (no CAP_NET_ADMIN), -ENOENT (no /dev/net/tun), -EBUSY (the name is taken),
 * -EINVAL (a kernel without vnet headers), -ENAMETOOLONG. */
int tun_device_open(const char *pattern, bool vnet_header, char name[TUN_NAME_SIZE]);

/* What another process opened: the device's name, and whether it has vnet headers. 0 or -errno: -EBADFD (the
 * device was deleted), -ENOTTY or -EINVAL (this is no TUN device). */
int tun_device_identify(int fd, char name[TUN_NAME_SIZE], bool *vnet_header);

/* Looks at an open device and switches on those of the wanted offloads that the kernel has. 0 or -errno. */
int tun_device_attach(struct tun_device *tun, int fd, unsigned wanted);

/* Reads one packet or superpacket; without vnet headers *header is all zero. The packet's length; -EAGAIN when
 * there is none; any other -errno means the device is gone, unless tun_device_lost_packet. */
ssize_t tun_device_read(const struct tun_device *tun, struct virtio_net_hdr *header, uint8_t *buffer,
                        size_t size);

/* Writes one packet or superpacket. iov[0] is its struct virtio_net_hdr, left out if the device takes none.
 * 0 or -errno; tun_device_is_gone tells a lost device from a lost packet. */
int tun_device_write(const struct tun_device *tun, const struct iovec *iov, size_t count);

/* Whether this read error cost one packet and no more. */
bool tun_device_lost_packet(int error);

/* Whether this write error means the device itself is gone (deleted), not that it took no packet now. */
bool tun_device_is_gone(int error);

/* Whether this write error may be about the superpacket: its packets, written one by one, may pass. */
bool tun_device_refused_superpacket(int error);

#endif
