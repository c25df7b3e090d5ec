/* The outbox before a kernel that refuses, waits and takes less than it was given. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "outbox.h"

/* ---- the kernel: it takes packets for hosts, each of which numbers what it gets ---- */

enum { HOSTS = 12, NUMBERED = 8, LARGEST = 1500 };

struct host {
    struct peer peer;
    int refuses;          /* errno for every send to it, 0 for none */
    int refuses_segments; /* errno for segmented sends alone */
    size_t too_large;     /* EMSGSIZE for packets of this size and more, and for segments of it; 0: none is */
    uint32_t added, next; /* numbers: of the next packet for it, and the lowest it may still get */
    uint32_t got, segmented_sends;
};

static struct host hosts[HOSTS];
static unsigned calls;
static unsigned waits_after; /* sends until EAGAIN, once; 0: it does not come */
static unsigned takes;       /* sends it takes in one call at most; 0: any */
static bool writable;        /* what poll says of the socket */

static struct worker_counters counted;
static struct outbox outbox;
static uint8_t arena[2 << 20];
static size_t arena_used;

static size_t segment_size(const struct msghdr *message)
{
    uint16_t size;
    if (message->msg_controllen == 0)
        return 0;
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    CHECK(header != NULL && header->cmsg_level == IPPROTO_UDP);
    memcpy(&size, CMSG_DATA(header), sizeof size);
    return size;
}

static size_t flatten(const struct msghdr *message, uint8_t *bytes)
{
    size_t length = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        CHECK(length + message->msg_iov[i].iov_len <= UDP_SEND_MAX);
        memcpy(bytes + length, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
        length += message->msg_iov[i].iov_len;
    }
    return length;
}

/* A packet names its host, its number and its size: it is whole, for this host, and comes once and in order. */
static void receive(struct host *host, const uint8_t *bytes, size_t length)
{
    uint16_t names[2];
    uint32_t number;
    CHECK(length >= NUMBERED);
    memcpy(names, bytes, sizeof names);
    memcpy(&number, bytes + sizeof names, sizeof number);
    CHECK_EQ(names[0], host - hosts);
    CHECK_EQ(names[1], length);
    CHECK(number >= host->next && number < host->added);
    host->next = number + 1;
    host->got++;
}

static int deliver(const struct msghdr *message)
{
    static uint8_t bytes[UDP_SEND_MAX];
    const struct sockaddr_in *to = message->msg_name;
    struct host *host = &hosts[ntohl(to->sin_addr.s_addr) - 1];
    size_t size = segment_size(message), length = flatten(message, bytes);
    CHECK_EQ(ntohs(to->sin_port), 8285);
    if (host->refuses != 0)
        return host->refuses;
    if (host->too_large != 0 && (size == 0 ? length : size) >= host->too_large)
        return EMSGSIZE;
    if (size == 0) {
        receive(host, bytes, length);
        return 0;
    }
    if (host->refuses_segments != 0)
        return host->refuses_segments;
    CHECK((length + size - 1) / size <= UDP_SEGMENTS_MAX);
    host->segmented_sends++;
    for (size_t at = 0; at < length; at += size)
        receive(host, bytes + at, length - at < size ? length - at : size);
    return 0;
}

/* As sendmmsg(2): how many were taken, or the error of the first. */
static int kernel_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    CHECK(fd == 7 && flags == MSG_DONTWAIT && count > 0);
    calls++;
    for (unsigned i = 0; i < count; i++) {
        int error = waits_after == 1 ? EAGAIN : deliver(&batch[i].msg_hdr);
        if (waits_after > 0)
            waits_after--;
        if (error != 0) {
            errno = error;
            return i == 0 ? -1 : (int)i;
        }
        if (takes != 0 && i + 1 == takes)
            return (int)takes;
    }
    return (int)count;
}

static int kernel_poll(struct pollfd *sockets, nfds_t count, int milliseconds)
{
    CHECK(count == 1 && milliseconds == 0 && sockets->fd == 7 && sockets->events == POLLOUT);
    sockets->revents = writable ? POLLOUT : 0;
    return writable ? 1 : 0;
}

/* ---- the sender ---- */

static void begin(bool gso)
{
    memset(hosts, 0, sizeof hosts);
    memset(&counted, 0, sizeof counted);
    calls = waits_after = takes = 0;
    writable = false;
    for (uint32_t i = 0; i < HOSTS; i++)
        hosts[i].peer.address = i + 1;
    outbox_reset(&outbox);
    arena_used = 0;
    outbox.gso = gso;
    outbox.port = 8285;
    outbox.counters = &counted;
    outbox.offload_changed = false;
    faults_replace_send(kernel_send);
    faults_replace_poll(kernel_poll);
}

static void add(size_t host, size_t length, size_t pieces)
{
    uint8_t *bytes = arena + arena_used;
    uint16_t names[2] = {(uint16_t)host, (uint16_t)length};
    arena_used += length;
    CHECK(arena_used <= sizeof arena && outbox_has_room(&outbox));
    memset(bytes, 0, length);
    memcpy(bytes, names, sizeof names);
    memcpy(bytes + sizeof names, &hosts[host].added, sizeof hosts[host].added);
    hosts[host].added++;
    size_t head = pieces == 1 ? length : NUMBERED;
    struct iovec iov[2] = {{bytes, head}, {bytes + head, length - head}};
    outbox_add(&outbox, &hosts[host].peer, iov, pieces);
}

static int flush(uint64_t now_ns)
{
    return outbox_flush(&outbox, 7, now_ns);
}

/* Everything left, and the sender counts what the hosts count. */
static void check_all_went(void)
{
    uint64_t got = 0, added = 0, dropped = 0;
    CHECK(outbox_is_empty(&outbox));
    for (size_t i = 0; i < HOSTS; i++) {
        const struct host *host = &hosts[i];
        CHECK_EQ(host->peer.sent_packets, host->got);
        CHECK_EQ(host->peer.sent_packets + host->peer.dropped_packets, host->added);
        if (host->refuses == 0 && host->too_large == 0)
            CHECK_EQ(host->got, host->added);
        got += host->got;
        added += host->added;
    }
    for (size_t i = 0; i < DROP_COUNT; i++)
        dropped += counted.drops[i];
    CHECK_EQ(counted.udp_sent_packets, got);
    CHECK_EQ(dropped, added - got);
}

/* ---- tests ---- */

static void a_peer_that_cannot_be_sent_to_delays_no_other(void)
{
    static const struct {
        int error;
        enum drop_reason drop;
    } refusals[] = {{EPERM, DROP_TUN_SEND_FIREWALL},        {EACCES, DROP_TUN_SEND_FIREWALL},
                    {EHOSTUNREACH, DROP_TUN_SEND_UNREACHABLE}, {ENETUNREACH, DROP_TUN_SEND_UNREACHABLE},
                    {EINVAL, DROP_TUN_SEND_UNREACHABLE},    {EMSGSIZE, DROP_TUN_SEND_TOO_LARGE},
                    {EIO, DROP_TUN_SEND_FAILED},            {ENOBUFS, DROP_TUN_SEND_FAILED}};
    for (size_t i = 0; i < 2 * sizeof refusals / sizeof *refusals; i++) {
        begin(i % 2 == 0);
        hosts[3].refuses = refusals[i / 2].error;
        for (size_t round = 0; round < 20; round++) {
            for (size_t host = 0; host < 6; host++)
                add(host, 100, 1);
        }
        CHECK_EQ(flush(1), 0);
        check_all_went();
        CHECK_EQ(hosts[3].peer.dropped_packets, 20);
        CHECK_EQ(counted.drops[refusals[i / 2].drop], 20);
        CHECK_EQ(counted.send_fallbacks, 0); /* the trouble was not the segments */
        CHECK(calls <= 2 + 2 * 20);    /* each lost packet costs at most a call that ends before it and its own */
    }
}

/* EAGAIN for one destination: to wait for the socket, which is writable, would delay every peer for ever. */
static void a_peer_with_eagain_on_a_writable_socket_delays_no_other(void)
{
    for (int gso = 0; gso < 2; gso++) {
        begin(gso != 0);
        writable = true;
        hosts[3].refuses = EAGAIN;
        for (size_t packet = 0; packet < 120; packet++)
            add(packet % 6, 100, 1);
        CHECK_EQ(flush(1), 0);
        check_all_went();
        CHECK_EQ(hosts[3].peer.dropped_packets, 20);
        CHECK_EQ(counted.drops[DROP_TUN_SEND_FAILED], 20);
        CHECK(calls <= 2 + 3 * 20);
    }
}

static void a_socket_that_has_just_become_writable_is_tried_again(void)
{
    for (unsigned after = 1; after <= 40; after++) {
        begin(after % 2 == 0);
        writable = true;
        for (size_t packet = 0; packet < 40; packet++)
            add(packet % 4, 700, 1 + packet % 2);
        waits_after = after; /* once */
        CHECK_EQ(flush(1), 0);
        CHECK_EQ(counted.udp_sent_packets, 40);
        check_all_went();
    }
}

static void packets_of_many_peers_in_turn_leave_in_one_segmented_send_each(void)
{
    begin(true);
    for (size_t packet = 0; packet < (size_t)12 * HOSTS; packet++)
        add(packet % HOSTS, 300, 1);
    CHECK_EQ(flush(1), 0);
    check_all_went();
    CHECK_EQ(calls, 1);
    CHECK_EQ(counted.udp_segmented_sends, HOSTS);
}

static void refused_segments_leave_singly_and_once(void)
{
    static const int errors[] = {EIO, EINVAL, EMSGSIZE};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        begin(true);
        hosts[1].refuses_segments = errors[i];
        for (size_t packet = 0; packet < 30; packet++) {
            add(0, 900, 2);
            add(1, 900, 2);
        }
        CHECK_EQ(flush(1), 0);
        check_all_went();
        CHECK_EQ(hosts[0].segmented_sends, 1);
        CHECK_EQ(counted.send_fallbacks, 1);
        CHECK_EQ(counted.udp_segmented_sends, 1);
        CHECK(outbox.offload_changed);
        CHECK(hosts[0].peer.plain_until_ns == 0 && hosts[1].peer.plain_until_ns != 0);
    }
}

static void segments_are_tried_again_after_a_while_and_by_other_peers_at_once(void)
{
    begin(true);
    hosts[1].refuses_segments = EIO;
    uint64_t now = 1, second = UINT64_C(1000000000);
    for (size_t round = 0; round < 3; round++, now += second) {
        outbox_reset(&outbox);
        for (size_t packet = 0; packet < 20; packet++)
            add(packet % 2, 500, 1);
        calls = 0;
        CHECK_EQ(flush(now), 0);
        CHECK_EQ(counted.send_fallbacks, 1);
        CHECK_EQ(hosts[0].segmented_sends, round + 1);
        CHECK(round == 0 || calls == 1);
        CHECK_EQ(outbox.offload_changed, round == 0);
        outbox.offload_changed = false;
    }
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        now += 10 * second;
        hosts[1].refuses_segments = attempt == 0 ? EIO : 0;
        outbox_reset(&outbox);
        for (size_t packet = 0; packet < 20; packet++)
            add(1, 500, 1);
        CHECK_EQ(flush(now), 0);
        CHECK_EQ(hosts[1].segmented_sends, attempt);
        CHECK_EQ(outbox.offload_changed, attempt == 1); /* still refused is nothing new */
        CHECK_EQ(hosts[1].peer.plain_until_ns == 0, attempt == 1);
    }
    check_all_went();
}

static void what_is_given_up_is_counted_as_not_sent(void)
{
    for (unsigned after = 1; after <= 40; after++) {
        begin(after % 2 == 0);
        for (size_t packet = 0; packet < 30; packet++)
            add(packet % 3, 700, 1 + packet % 2);
        waits_after = after;
        hosts[1].refuses_segments = EIO; /* some of a message may have left */
        int status = flush(1);
        outbox_abandon(&outbox);
        CHECK(outbox_is_empty(&outbox));
        CHECK_EQ(counted.udp_sent_packets + counted.drops[DROP_TUN_SEND_FAILED], 30);
        CHECK_EQ(status == 0, counted.udp_sent_packets == 30);
        for (size_t host = 0; host < 3; host++)
            CHECK_EQ(hosts[host].peer.sent_packets + hosts[host].peer.dropped_packets, 10);
    }
}

static void a_full_socket_keeps_the_rest_for_later(void)
{
    for (unsigned after = 1; after <= 40; after++) {
        for (int gso = 0; gso < 2; gso++) {
            begin(gso != 0);
            hosts[2].refuses_segments = EIO;
            for (size_t packet = 0; packet < 30; packet++)
                add(packet % 3, 700, 1 + packet % 2);
            waits_after = after;
            while (flush(1) == 1)
                CHECK_EQ(waits_after, 0); /* it stops at once */
            check_all_went();
        }
    }
}

static void a_packet_added_while_others_wait_leaves_after_them(void)
{
    for (int gso = 0; gso < 2; gso++) {
        begin(gso != 0);
        add(0, 100, 1);
        add(0, 100, 1);
        add(1, 100, 1);
        takes = 1;
        waits_after = gso != 0 ? 2 : 3;
        CHECK_EQ(flush(1), 1);
        CHECK_EQ(hosts[0].got, 2);
        add(0, 100, 1);
        CHECK_EQ(flush(1), 0);
        check_all_went();
    }
}

static void a_short_send_continues_where_it_stopped(void)
{
    for (unsigned most = 1; most < 9; most++) {
        begin(most % 2 == 0);
        takes = most;
        for (size_t packet = 0; packet < 120; packet++)
            add(packet % HOSTS, 8 + packet % 5, 1);
        CHECK_EQ(flush(1), 0);
        check_all_went();
    }
}

static void a_path_too_narrow_loses_only_what_is_too_large(void)
{
    begin(true);
    hosts[0].too_large = 1000;
    for (size_t packet = 0; packet < 60; packet++)
        add(0, packet % 3 == 0 ? 1400 : 600, 1);
    CHECK_EQ(flush(1), 0);
    check_all_went();
    CHECK_EQ(counted.drops[DROP_TUN_SEND_TOO_LARGE], 20);
}

static void a_dead_socket_ends_the_flush(void)
{
    static const int errors[] = {EBADF, ENOTSOCK, EPIPE};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        begin(true);
        hosts[1].refuses = errors[i];
        add(0, 100, 1);
        add(1, 100, 1);
        CHECK_EQ(flush(1), -errors[i]);
        CHECK_EQ(hosts[0].got, 1);
    }
}

static void spoil(struct host *host, uint64_t *seed)
{
    static const int refusals[] = {EPERM, EHOSTUNREACH, EINVAL, ENOBUFS, EIO};
    static const int segments[] = {EIO, EINVAL, EMSGSIZE};
    switch (oracle_random(seed) % 6) {
    case 0:
        host->refuses = refusals[oracle_random(seed) % 5];
        break;
    case 1:
        host->refuses_segments = segments[oracle_random(seed) % 3];
        break;
    case 2:
        host->too_large = 1 + oracle_random(seed) % LARGEST;
        break;
    default:
        break;
    }
}

static void any_mix_of_faults_loses_only_what_cannot_be_sent(void)
{
    for (uint64_t round = 0; round < 3000; round++) {
        uint64_t seed = round;
        begin(round % 2 == 0);
        for (size_t i = 0; i < HOSTS; i++)
            spoil(&hosts[i], &seed);
        size_t size = NUMBERED + oracle_random(&seed) % (LARGEST - NUMBERED), host = 0;
        for (size_t left = oracle_random(&seed) % 150; left > 0; left--) {
            if (oracle_random(&seed) % 4 == 0)
                host = oracle_random(&seed) % HOSTS;
            if (oracle_random(&seed) % 8 == 0)
                size = NUMBERED + oracle_random(&seed) % (LARGEST - NUMBERED);
            add(host, size, 1 + oracle_random(&seed) % 2);
        }
        do {
            takes = (unsigned)(oracle_random(&seed) % 4);
            waits_after = (unsigned)(oracle_random(&seed) % 20);
        } while (flush(1 + round) == 1);
        check_all_went();
    }
}

int main(void)
{
    RUN(a_peer_that_cannot_be_sent_to_delays_no_other);
    RUN(a_peer_with_eagain_on_a_writable_socket_delays_no_other);
    RUN(a_socket_that_has_just_become_writable_is_tried_again);
    RUN(packets_of_many_peers_in_turn_leave_in_one_segmented_send_each);
    RUN(refused_segments_leave_singly_and_once);
    RUN(segments_are_tried_again_after_a_while_and_by_other_peers_at_once);
    RUN(what_is_given_up_is_counted_as_not_sent);
    RUN(a_full_socket_keeps_the_rest_for_later);
    RUN(a_packet_added_while_others_wait_leaves_after_them);
    RUN(a_short_send_continues_where_it_stopped);
    RUN(a_path_too_narrow_loses_only_what_is_too_large);
    RUN(a_dead_socket_ends_the_flush);
    RUN(any_mix_of_faults_loses_only_what_cannot_be_sent);
}
