#include "tun_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "offload.h"

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20 /* Linux 6.2 */
#define TUN_F_USO6 0x40
#endif

_Static_assert(TUN_NAME_SIZE == IFNAMSIZ, "TUN_NAME_SIZE is the kernel's IFNAMSIZ");

int tun_device_open(const char *pattern, bool vnet_header, char name[TUN_NAME_SIZE])
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    if (vnet_header)
        request.ifr_flags |= IFF_VNET_HDR;
    size_t length = strlen(pattern);
    if (length >= sizeof request.ifr_name)
        return -ENAMETOOLONG;
    memcpy(request.ifr_name, pattern, length);

    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    memcpy(name, request.ifr_name, TUN_NAME_SIZE);
    return fd;
}

int tun_device_identify(int fd, char name[TUN_NAME_SIZE], bool *vnet_header)
{
    struct ifreq request = {0};
    if (ioctl(fd, TUNGETIFF, &request) < 0)
        return -errno;
    memcpy(name, request.ifr_name, TUN_NAME_SIZE);
    *vnet_header = (request.ifr_flags & IFF_VNET_HDR) != 0;
    return 0;
}

/* Asks the kernel for these offloads; it accepts all or none. */
static bool set_offloads(int fd, unsigned offloads)
{
    unsigned flags = 0;
    if (offloads & OFFLOAD_TSO)
        flags |= TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN;
    if (offloads & OFFLOAD_USO)
        flags |= TUN_F_USO4 | TUN_F_USO6; /* the kernel takes them only together */
    return ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags) == 0;
}

int tun_device_attach(struct tun_device *tun, int fd, unsigned wanted)
{
    struct ifreq request = {0};
    if (ioctl(fd, TUNGETIFF, &request) < 0)
        return -errno;
    *tun = (struct tun_device){.fd = fd, .vnet_header = (request.ifr_flags & IFF_VNET_HDR) != 0};
    if (!tun->vnet_header)
        return 0;
    int size = sizeof(struct virtio_net_hdr);
    if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
        return -errno;
    /* USO needs TSO. An older kernel refuses what it does not have, so try without USO, then without any. */
    tun->offloads = wanted & OFFLOAD_TSO ? wanted & (OFFLOAD_TSO | OFFLOAD_USO) : 0;
    while (!set_offloads(fd, tun->offloads)) {
        if (tun->offloads == 0)
            return -errno;
        tun->offloads &= tun->offloads & OFFLOAD_USO ? OFFLOAD_TSO : 0;
    }
    return 0;
}

ssize_t tun_device_read(const struct tun_device *tun, struct virtio_net_hdr *header, uint8_t *buffer,
                        size_t size)
{
    struct iovec iov[2] = {{header, sizeof *header}, {buffer, size}};
    size_t prefix = tun->vnet_header ? sizeof *header : 0;
    ssize_t n;
    if (!tun->vnet_header)
        memset(header, 0, sizeof *header);
    do {
        n = tun->vnet_header ? readv(tun->fd, iov, 2) : read(tun->fd, buffer, size);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return (size_t)n < prefix ? -EIO : n - (ssize_t)prefix;
}

int tun_device_write(const struct tun_device *tun, const struct iovec *iov, size_t count)
{
    size_t skipped = tun->vnet_header ? 0 : 1;
    ssize_t n;
    do {
        n = writev(tun->fd, iov + skipped, (int)(count - skipped));
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

bool tun_device_lost_packet(int error)
{
    /* EINVAL: the kernel took the packet off its queue, could not express its offloads, and dropped it. */
    return error == -EINVAL;
}

bool tun_device_is_gone(int error)
{
    /* EBADFD: the device was deleted under the descriptor. EBADF, ENODEV: there is none.
     * All others are about one packet: EIO (set down), EAGAIN, ENOMEM, ENOBUFS, EINVAL. */
    return error == -EBADFD || error == -EBADF || error == -ENODEV;
}

bool tun_device_refused_superpacket(int error)
{
    /* EINVAL: the kernel refuses the vnet header (seen with some 6.6 kernels); E2BIG, EMSGSIZE: the size. */
    return error == -EINVAL || error == -E2BIG || error == -EMSGSIZE;
}
