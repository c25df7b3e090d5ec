/* traffic.c - the load generators of the benchmarks, as programs in containers see the network.
 *
 *   traffic flood ADDRESS PORT SIZE SECONDS   sends UDP datagrams of SIZE bytes, one send each, as fast as it can
 *   traffic sink PORT SECONDS                 prints "ready", then the datagrams a second it received, over
 *                                             SECONDS from the first one
 *   traffic ping ADDRESS GAP_US SECONDS       one ICMP echo after another, GAP_US after each answer; prints the
 *                                             median and the 99th percentile of the round trips in
 *                                             microseconds, their number and how many stayed unanswered
 *
 * Errors are printed, and the exit code is 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, SLOT = 2048, SAMPLES = 1 << 20 };

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_in address_of(const char *text, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
        errno = EINVAL;
        fail(text);
    }
    return address;
}

/* A socket whose receives give up after the time-out, in seconds. */
static int open_socket(int type, int protocol, double timeout)
{
    int fd = socket(AF_INET, type, protocol);
    if (fd < 0)
        fail("socket");
    struct timeval limit = {(time_t)timeout, (suseconds_t)((timeout - (double)(time_t)timeout) * 1e6)};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
        fail("SO_RCVTIMEO");
    return fd;
}

static int flood(struct sockaddr_in to, size_t size, double seconds)
{
    static char payload[UINT16_MAX];
    int fd = open_socket(SOCK_DGRAM, 0, 1);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect");
    for (double end = now() + seconds; now() < end;)
        for (int i = 0; i < BATCH; i++)
            if (send(fd, payload, size, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
                fail("send");
    return 0;
}

static int sink(int port, double seconds)
{
    static char slots[BATCH][SLOT];
    static struct iovec iov[BATCH];
    static struct mmsghdr batch[BATCH];
    int fd = open_socket(SOCK_DGRAM, 0, 2);
    int buffer = 4 << 20;
    struct sockaddr_in local = address_of("0.0.0.0", port);
    for (int i = 0; i < BATCH; i++) {
        iov[i] = (struct iovec){slots[i], SLOT};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0)
        fail("bind");
    printf("ready\n");
    fflush(stdout);
    uint64_t received = 0;
    double start = 0;
    do {
        int n = recvmmsg(fd, batch, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0)
            fail("nothing received");
        if (received == 0)
            start = now();
        received += (uint64_t)n;
    } while (now() < start + seconds);
    printf("%.1f\n", (double)received / (now() - start));
    return 0;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static uint16_t checksum(const void *bytes, size_t length)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < length; i += 2) {
        uint16_t word;
        memcpy(&word, (const char *)bytes + i, sizeof word);
        sum += word;
    }
    return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}

/* Waits for the answer to this echo. Whether it came. */
static int await_answer(int fd, const struct icmphdr *echo)
{
    char answer[SLOT];
    for (;;) {
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        if (n < 0)
            return 0;
        struct icmphdr icmp;
        size_t header = (size_t)(answer[0] & 15) * 4;
        if ((size_t)n < header + sizeof icmp)
            continue;
        memcpy(&icmp, answer + header, sizeof icmp);
        if (icmp.type == ICMP_ECHOREPLY && icmp.un.echo.id == echo->un.echo.id &&
            icmp.un.echo.sequence == echo->un.echo.sequence)
            return 1;
    }
}

static int ping(struct sockaddr_in to, unsigned gap_us, double seconds)
{
    static double samples[SAMPLES];
    size_t count = 0, lost = 0;
    uint16_t sequence = 0;
    int fd = open_socket(SOCK_RAW, IPPROTO_ICMP, 0.25);
    for (double end = now() + seconds; now() < end && count < SAMPLES;) {
        struct {
            struct icmphdr icmp;
            char payload[56]; /* as ping(8) sends */
        } echo = {.icmp = {.type = ICMP_ECHO}};
        echo.icmp.un.echo.id = htons((uint16_t)getpid());
        echo.icmp.un.echo.sequence = htons(++sequence);
        echo.icmp.checksum = checksum(&echo, sizeof echo);
        double sent = now();
        if (sendto(fd, &echo, sizeof echo, 0, (struct sockaddr *)&to, sizeof to) < 0)
            fail("send");
        if (await_answer(fd, &echo.icmp))
            samples[count++] = (now() - sent) * 1e6;
        else
            lost++;
        if (gap_us != 0)
            usleep(gap_us);
    }
    if (count == 0) {
        errno = ETIMEDOUT;
        fail("no answer");
    }
    qsort(samples, count, sizeof *samples, compare);
    printf("%.2f %.2f %zu %zu\n", samples[count / 2], samples[count * 99 / 100], count, lost);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "flood") == 0)
        return flood(address_of(argv[2], atoi(argv[3])), (size_t)atoi(argv[4]), atof(argv[5]));
    if (argc == 4 && strcmp(argv[1], "sink") == 0)
        return sink(atoi(argv[2]), atof(argv[3]));
    if (argc == 5 && strcmp(argv[1], "ping") == 0)
        return ping(address_of(argv[2], 0), (unsigned)atoi(argv[3]), atof(argv[4]));
    fprintf(stderr, "see the head of traffic.c\n");
    return 2;
}
