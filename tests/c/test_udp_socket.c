/* The socket's offloads are tried by a real use, and believed only where that cannot be done. */
#include "udp_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "offload.h"
#include "packets.h"
#include "rig.h"

enum { BOTH = OFFLOAD_UDP_GSO | OFFLOAD_UDP_GRO, GRO_OPTION = 104 };

/* What is found of the wanted ones; the socket merges only if that is among them, and no descriptor is left. */
static unsigned found(unsigned wanted)
{
    int fd = udp_socket_open(0, 0), merges = -1;
    size_t descriptors = rig_descriptors();
    socklen_t size = sizeof merges;
    CHECK(fd >= 0);
    unsigned on = udp_socket_attach(fd, wanted);
    CHECK_EQ(rig_descriptors(), descriptors);
    CHECK_EQ(getsockopt(fd, IPPROTO_UDP, GRO_OPTION, &merges, &size), 0);
    CHECK_EQ(merges != 0, (on & OFFLOAD_UDP_GRO) != 0);
    close(fd);
    return on;
}

static void what_works_and_is_wanted_is_on(void)
{
    CHECK_EQ(found(BOTH), BOTH); /* every kernel that runs these tests has them */
    CHECK_EQ(found(OFFLOAD_UDP_GSO), OFFLOAD_UDP_GSO);
    CHECK_EQ(found(OFFLOAD_UDP_GRO), OFFLOAD_UDP_GRO);
    CHECK_EQ(found(0), 0);
    CHECK_EQ(found(OFFLOAD_TSO | OFFLOAD_USO), 0);
}

static int send_error;

static int refusing_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    (void)fd, (void)batch, (void)count, (void)flags;
    errno = send_error;
    return -1;
}

static void udp_gso_is_off_only_if_the_trial_refuses_segments(void)
{
    static const int refusals[] = {EIO, EINVAL, EMSGSIZE}, others[] = {EPERM, ENETUNREACH, ENOBUFS, EAGAIN};
    faults_replace_send(refusing_send);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        send_error = refusals[i];
        CHECK_EQ(found(BOTH), OFFLOAD_UDP_GRO);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        send_error = others[i];
        CHECK_EQ(found(BOTH), BOTH);
    }
    faults_replace_send(NULL);
}

/* A kernel that takes no notice of the segment size: one datagram leaves. */
static int whole_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    batch->msg_hdr.msg_control = NULL;
    batch->msg_hdr.msg_controllen = 0;
    return faults_real_send(fd, batch, count, flags);
}

static int corrupting_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    uint8_t *bytes = batch->msg_hdr.msg_iov[0].iov_base;
    bytes[batch->msg_hdr.msg_iov[0].iov_len / 2] ^= 1;
    int sent = faults_real_send(fd, batch, count, flags);
    bytes[batch->msg_hdr.msg_iov[0].iov_len / 2] ^= 1;
    return sent;
}

static void both_are_off_if_the_trial_is_not_cut_or_arrives_changed(void)
{
    faults_replace_send(whole_send);
    CHECK_EQ(found(BOTH), 0);
    CHECK_EQ(found(OFFLOAD_UDP_GSO), 0);
    faults_replace_send(corrupting_send);
    CHECK_EQ(found(BOTH), 0);
    faults_replace_send(NULL);
}

/* A kernel that does not merge on lo. */
static int single_sends(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    struct iovec *iov = batch->msg_hdr.msg_iov;
    iov->iov_len /= 2;
    (void)whole_send(fd, batch, count, flags);
    iov->iov_base = (uint8_t *)iov->iov_base + iov->iov_len;
    return whole_send(fd, batch, count, flags);
}

static int single_sends_the_second_corrupted(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    struct iovec *iov = batch->msg_hdr.msg_iov;
    uint8_t *last = (uint8_t *)iov->iov_base + iov->iov_len - 1;
    *last ^= 1;
    int sent = single_sends(fd, batch, count, flags);
    *last ^= 1;
    return sent;
}

static int single_sends_the_second_cut(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    struct iovec *iov = batch->msg_hdr.msg_iov;
    iov->iov_len /= 2;
    (void)whole_send(fd, batch, count, flags);
    iov->iov_base = (uint8_t *)iov->iov_base + iov->iov_len--;
    return whole_send(fd, batch, count, flags);
}

static void udp_gro_is_on_although_the_trial_is_not_merged(void)
{
    faults_replace_send(single_sends);
    CHECK_EQ(found(BOTH), BOTH);
    CHECK_EQ(found(OFFLOAD_UDP_GSO), OFFLOAD_UDP_GSO);
    faults_replace_send(NULL);
}

static void udp_gro_is_off_if_an_unmerged_datagram_is_wrong(void)
{
    faults_replace_send(single_sends_the_second_corrupted);
    CHECK_EQ(found(BOTH), 0);
    faults_replace_send(single_sends_the_second_cut);
    CHECK_EQ(found(BOTH), 0);
    faults_replace_send(NULL);
}

/* A kernel that merges and does not say so. */
static int silent_receive(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    int received = faults_real_receive(fd, batch, count, flags);
    batch->msg_hdr.msg_controllen = 0;
    return received;
}

static void udp_gro_is_off_if_a_merged_receive_lacks_its_size(void)
{
    faults_replace_receive(silent_receive);
    CHECK_EQ(found(BOTH), 0);
    faults_replace_receive(NULL);
}

static int losing_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    (void)fd, (void)batch, (void)flags;
    return (int)count;
}

static void without_a_trial_the_result_of_setsockopt_counts(void)
{
    faults_replace_send(losing_send); /* a firewall on lo */
    CHECK_EQ(found(BOTH), BOTH);
    faults_replace_send(NULL);
    CHECK_EQ(unshare(CLONE_NEWNET), 0); /* lo is down */
    CHECK_EQ(found(BOTH), BOTH);
}

/* Sends more than a socket holds that nobody reads; `from` is the port, 0 for any. Returns how many were sent. */
static uint32_t overfill(int fd, uint16_t from)
{
    enum { SENT = 2000, SIZE = 1400 };
    static const uint8_t bytes[SIZE];
    struct sockaddr_in local = {0};
    socklen_t size = sizeof local;
    int least = 1, sender = rig_socket(address("127.0.0.1"), from);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof least), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&local, &size), 0);
    for (size_t i = 0; i < SENT; i++)
        rig_send(sender, address("127.0.0.1"), ntohs(local.sin_port), bytes, SIZE);
    close(sender);
    return SENT;
}

/* What the kernel counts as dropped when the socket is overfilled. */
static uint32_t overflow(int fd, struct udp_overflows *overflows)
{
    udp_socket_count_overflows(fd, false, overflows);
    uint64_t before = overflows->total;
    uint32_t sent = overfill(fd, 0);
    udp_socket_count_overflows(fd, false, overflows);
    uint64_t dropped = overflows->total - before;
    CHECK(dropped > 0 && dropped < sent);
    return (uint32_t)dropped;
}

static void overflows_are_summed_across_sockets_and_beyond_32_bits(void)
{
    struct udp_overflows overflows = {0};
    int first = udp_socket_open(address("127.0.0.1"), 0), second = udp_socket_open(address("127.0.0.1"), 0);
    uint64_t total = overflow(first, &overflows);
    total += overflow(second, &overflows);
    CHECK_EQ(overflows.total, total);
    faults_add_drops(UINT32_MAX - 5);
    total += UINT32_MAX - 5;
    udp_socket_count_overflows(second, false, &overflows);
    CHECK_EQ(overflows.total, total);
    faults_add_drops(10);
    total += 16;
    udp_socket_count_overflows(second, false, &overflows);
    CHECK_EQ(overflows.total, total);
    faults_add_drops(0);
    close(first);
    close(second);
    udp_socket_count_overflows(second, false, &overflows); /* there is none */
    CHECK_EQ(overflows.total, total);
    CHECK_EQ(overflows.filtered, 0);
}

/* The datagrams that wait in the socket. */
static uint32_t waiting(int fd)
{
    uint8_t byte;
    uint32_t count = 0;
    while (recv(fd, &byte, 1, 0) >= 0)
        count++;
    return count;
}

enum { PEERS_PORT = 8286, OTHER_PORT = 8287 };

static void what_the_filter_drops_is_no_overflow(void)
{
    struct udp_overflows overflows = {0};
    struct flood_filter filter = {.ports = true};
    int fd = udp_socket_open(address("127.0.0.1"), 0);
    CHECK(udp_socket_set_filter(fd, PEERS_PORT, &filter));
    udp_socket_count_overflows(fd, true, &overflows);
    struct udp_overflows before = overflows;
    uint32_t sent = overfill(fd, PEERS_PORT), taken = waiting(fd);
    udp_socket_count_overflows(fd, true, &overflows);
    CHECK_EQ(overflows.filtered, before.filtered);
    CHECK_EQ(overflows.total - before.total, sent - taken);
    before = overflows;
    sent = overfill(fd, OTHER_PORT);
    taken = waiting(fd);
    CHECK(taken < sent / 16); /* the sample */
    udp_socket_count_overflows(fd, true, &overflows);
    CHECK_EQ(overflows.filtered + overflows.total - before.filtered - before.total, sent - taken);
    CHECK(overflows.total - before.total < sent / 16); /* of the sample, which the buffer does not hold either */
    close(fd);
}

static void the_filter_drops_the_addresses_it_has_and_no_others(void)
{
    struct flood_filter filter = {0};
    for (size_t count = 0; count <= FLOOD_SOURCES; count += count < 3 ? 1 : FLOOD_SOURCES - 3) {
        for (uint32_t i = 0; i < count; i++)
            filter.sources[i] = address("127.0.1.1") + i;
        filter.count = count;
        int fd = udp_socket_open(address("127.0.0.1"), 0);
        struct sockaddr_in local = {0};
        socklen_t size = sizeof local;
        CHECK_EQ(getsockname(fd, (struct sockaddr *)&local, &size), 0);
        CHECK_EQ(udp_socket_set_filter(fd, PEERS_PORT, &filter), count > 0);
        for (uint32_t i = 0; i <= count; i++) { /* the last is not among them */
            int from = rig_socket(address("127.0.1.1") + i, OTHER_PORT);
            for (size_t j = 0; j < 64; j++)
                rig_send(from, address("127.0.0.1"), ntohs(local.sin_port), "x", 1);
            close(from);
            CHECK(i < count ? waiting(fd) < 16 : waiting(fd) == 64);
        }
        filter.count = 0;
        CHECK(!udp_socket_set_filter(fd, PEERS_PORT, &filter));
        CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int)), -1); /* there is none left */
        close(fd);
    }
}

static int receive_buffer(int fd)
{
    int size = 0;
    socklen_t length = sizeof size;
    CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, &length), 0);
    return size;
}

static int largest_allowed(void)
{
    char text[16] = "";
    int fd = open("/proc/sys/net/core/rmem_max", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    return (int)strtol(text, NULL, 10);
}

/* Only CAP_NET_ADMIN may exceed net.core.rmem_max; without it the socket gets as much as that. The kernel doubles it. */
static void without_the_right_to_a_large_buffer_the_socket_has_what_is_allowed(void)
{
    enum { WANTED = 4 << 20 };
    int large = udp_socket_open(0, 0), allowed = largest_allowed();
    CHECK_EQ(seteuid(65534), 0);
    int small = udp_socket_open(0, 0);
    CHECK_EQ(seteuid(0), 0);
    CHECK(large >= 0 && small >= 0);
    CHECK_EQ(receive_buffer(large), 2 * WANTED);
    CHECK_EQ(receive_buffer(small), 2 * (allowed < WANTED ? allowed : WANTED));
    close(large);
    close(small);
}

static void an_address_that_cannot_be_had_is_an_error_and_leaves_nothing(void)
{
    int taken = udp_socket_open(INADDR_LOOPBACK, 8285);
    size_t descriptors = rig_descriptors();
    CHECK(taken >= 0);
    CHECK_EQ(udp_socket_open(INADDR_LOOPBACK, 8285), -EADDRINUSE);
    CHECK_EQ(udp_socket_open(address("192.0.2.1"), 8285), -EADDRNOTAVAIL);
    CHECK_EQ(rig_descriptors(), descriptors);
    close(taken);
    CHECK_EQ(udp_socket_clear_error(taken), -EBADF);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN(what_works_and_is_wanted_is_on);
    RUN(udp_gso_is_off_only_if_the_trial_refuses_segments);
    RUN(both_are_off_if_the_trial_is_not_cut_or_arrives_changed);
    RUN(udp_gro_is_on_although_the_trial_is_not_merged);
    RUN(udp_gro_is_off_if_an_unmerged_datagram_is_wrong);
    RUN(udp_gro_is_off_if_a_merged_receive_lacks_its_size);
    RUN(overflows_are_summed_across_sockets_and_beyond_32_bits);
    RUN(what_the_filter_drops_is_no_overflow);
    RUN(the_filter_drops_the_addresses_it_has_and_no_others);
    RUN(without_the_right_to_a_large_buffer_the_socket_has_what_is_allowed);
    RUN(an_address_that_cannot_be_had_is_an_error_and_leaves_nothing);
    RUN(without_a_trial_the_result_of_setsockopt_counts);
}
