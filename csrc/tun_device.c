#include "tun_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

_Static_assert(TUN_NAME_SIZE == IFNAMSIZ, "TUN_NAME_SIZE is the kernel's IFNAMSIZ");

int tun_device_open(const char *pattern, char name[TUN_NAME_SIZE])
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
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

ssize_t tun_device_read(int fd, uint8_t *buffer, size_t size)
{
    ssize_t n;
    do {
        n = read(fd, buffer, size);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int tun_device_write(int fd, const uint8_t *packet, size_t length)
{
    ssize_t n;
    do {
        n = write(fd, packet, length);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

bool tun_device_is_gone(int error)
{
    /* EBADFD: the device was deleted under the descriptor. EBADF, ENODEV: there is none.
     * Everything else speaks of one packet: EIO (set down), EAGAIN, ENOMEM, ENOBUFS, EINVAL. */
    return error == -EBADFD || error == -EBADF || error == -ENODEV;
}
