/* simple_loop.c - the simplest overlay: one read and one send for every packet, or for every superpacket.
 *
 *   simple_loop DEVICE LOCAL PEER PORT [SEGMENT]
 *
 * The baseline of the preset `none`, which has no offloads either: as in flannel's proxy, one packet in each direction
 * in turn, with the kernel's default buffers. One peer, and nothing is checked.
 *
 * With SEGMENT, the baseline of all presets: superpackets pass unchanged behind their vnet headers, as one send of
 * datagrams of SEGMENT bytes. That copies each byte four times and does nothing else, the least that an overlay in user
 * space can do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/udp.h>
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

enum { VNET_BYTES = 10, SUPERPACKET_BYTES = 1 << 16, BUFFER_BYTES = 8 << 20 };

static void pass_superpackets(int tun, int udp, int segment)
{
    int on = 1, buffer = BUFFER_BYTES;
    check(ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4), "TUNSETOFFLOAD");
    check(setsockopt(udp, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment), "UDP_SEGMENT");
    check(setsockopt(udp, SOL_UDP, UDP_GRO, &on, sizeof on), "UDP_GRO");
    check(setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer), "SO_RCVBUFFORCE");
}

/* Receives merged datagrams, and writes the superpackets that are complete. Their IP headers hold their lengths. */
static ssize_t receive_superpackets(int tun, int udp, int segment)
{
    static unsigned char held[2 * SUPERPACKET_BYTES];
    static size_t length;
    ssize_t received = recv(udp, held + length, sizeof held - length, 0);
    if (received <= 0)
        return received;
    length += (size_t)received;
    unsigned char *at = held;
    while (length > VNET_BYTES + 4) {
        size_t whole = VNET_BYTES + (size_t)(at[VNET_BYTES + 2] << 8 | at[VNET_BYTES + 3]);
        if (whole > length)
            break;
        (void)!write(tun, at, whole);
        at += whole;
        length -= whole;
    }
    if (received % segment) /* a shorter datagram is the last one of its superpacket: others were lost */
        length = 0;
    memmove(held, at, length);
    return received;
}

static ssize_t receive_packet(int tun, int udp)
{
    static char packet[SUPERPACKET_BYTES];
    ssize_t received = recv(udp, packet, sizeof packet, 0);
    if (received > 0)
        (void)!write(tun, packet, (size_t)received);
    return received;
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 6)
        return 2;
    int segment = argc == 6 ? atoi(argv[5]) : 0;
    struct ifreq request = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | (segment ? IFF_VNET_HDR : 0))};
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    int tun = check(open("/dev/net/tun", O_RDWR | O_NONBLOCK), "/dev/net/tun");
    check(ioctl(tun, TUNSETIFF, &request), argv[1]);

    struct sockaddr_in local = address_of(argv[2], argv[4]), peer = address_of(argv[3], argv[4]);
    int udp = check(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), "socket");
    check(bind(udp, (struct sockaddr *)&local, sizeof local), "bind");
    if (segment)
        pass_superpackets(tun, udp, segment);
    printf("ready\n");
    fflush(stdout);

    static char packet[VNET_BYTES + SUPERPACKET_BYTES];
    struct pollfd fds[2] = {{tun, POLLIN, 0}, {udp, POLLIN, 0}};
    for (;;) {
        check(poll(fds, 2, -1), "poll");
        ssize_t out, in;
        do { /* one packet each way in turn, until both are dry */
            if ((out = read(tun, packet, sizeof packet)) > 0)
                (void)!sendto(udp, packet, (size_t)out, 0, (struct sockaddr *)&peer, sizeof peer);
            in = segment ? receive_superpackets(tun, udp, segment) : receive_packet(tun, udp);
        } while (out > 0 || in > 0);
    }
}
