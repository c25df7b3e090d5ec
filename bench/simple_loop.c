/* simple_loop.c - the simplest overlay: one read and one send for every packet.
 *
 *   simple_loop DEVICE LOCAL PEER PORT
 *
 * The baseline of the preset `none`, which has no offloads either: as in flannel's proxy, one packet in each direction
 * in turn, with the kernel's default buffers. One peer, and nothing is checked.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static struct sockaddr_in address_of(const char *text, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    check(inet_pton(AF_INET, text, &address.sin_addr) - 1, text);
    return address;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    int tun = check(open("/dev/net/tun", O_RDWR | O_NONBLOCK), "/dev/net/tun");
    check(ioctl(tun, TUNSETIFF, &request), argv[1]);

    struct sockaddr_in local = address_of(argv[2], argv[4]), peer = address_of(argv[3], argv[4]);
    int udp = check(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), "socket");
    check(bind(udp, (struct sockaddr *)&local, sizeof local), "bind");
    printf("ready\n");
    fflush(stdout);

    static char packet[1 << 16];
    struct pollfd fds[2] = {{tun, POLLIN, 0}, {udp, POLLIN, 0}};
    for (;;) {
        check(poll(fds, 2, -1), "poll");
        ssize_t out, in;
        do { /* one packet each way in turn, until both are dry */
            if ((out = read(tun, packet, sizeof packet)) > 0)
                (void)!sendto(udp, packet, (size_t)out, 0, (struct sockaddr *)&peer, sizeof peer);
            if ((in = recv(udp, packet, sizeof packet, 0)) > 0)
                (void)!write(tun, packet, (size_t)in);
        } while (out > 0 || in > 0);
    }
}
