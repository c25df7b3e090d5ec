/* Any packets for any peers, before a kernel that takes, refuses and interrupts as it likes: each packet leaves once
 * and in its peer's order, or is counted as lost.
 *
 * Input: one byte for the offload; records of struct step from its front; from its end the kernel's fates, one byte
 * for each send and each poll, until both meet.
 */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "faults.h"
#include "outbox.h"

enum { HOSTS = 8, NAMED = 8, SOCKET = 7, PORT = 8285, ARENA = 1 << 20, WHOLE_MAX = 65535 };

struct step {
    uint8_t what, host, count, detail;
    uint8_t size[2];
};

enum what { ADD_PACKETS, ADD_SUPERPACKET, FLUSH, LATER, ABANDON, WHATS };

enum { TAKEN_BELOW = 128, STOPS = 64 }; /* fates: below the first it takes the send; with this bit it then stops */

/* What a packet begins with. */
struct name {
    uint16_t host, length;
    uint32_t number;
};

struct host {
    struct peer peer;
    uint32_t added, next; /* numbers: of the next packet for it, and of the next that it is owed */
    uint64_t got, lost;
};

static struct host hosts[HOSTS];
static struct outbox outbox;
static struct worker_counters counted;
static uint8_t arena[ARENA];
static size_t arena_used;
static uint64_t calls, waits, interruptions;
static struct { /* the send that met EAGAIN so many times, one after another */
    struct host *host;
    uint32_t packets;
    unsigned times;
} blocked;
static struct {
    const uint8_t *begin, *end;
} fates;

/* ---- the kernel ---- */

static uint8_t next_fate(void)
{
    return fates.begin == fates.end ? 0 : *--fates.end;
}

static int error_of(uint8_t fate)
{
    static const int errors[] = {EAGAIN,       EINTR,       ENOBUFS,     EMSGSIZE, EIO,    EINVAL,        EPERM,
                                 ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ENOMEM,   EACCES, EADDRNOTAVAIL, ENETDOWN,
                                 EBADF,        ENOTSOCK,    EPIPE,       ETIMEDOUT};
    return fate < TAKEN_BELOW ? 0 : errors[fate % (sizeof errors / sizeof *errors)];
}

static size_t segment_size(const struct msghdr *message)
{
    uint16_t size;
    if (message->msg_controllen == 0)
        return 0;
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    CHECK(header != NULL && header->cmsg_level == IPPROTO_UDP && header->cmsg_len == CMSG_LEN(sizeof size));
    memcpy(&size, CMSG_DATA(header), sizeof size);
    CHECK(size != 0);
    return size;
}

/* The host's next packet begins at this iovec. Its length; *pieces is moved past it. */
static size_t check_packet(const struct host *host, uint32_t number, const struct iovec **pieces, const struct iovec *end)
{
    struct name name;
    CHECK(*pieces < end && (*pieces)->iov_len >= sizeof name);
    memcpy(&name, (*pieces)->iov_base, sizeof name);
    CHECK_EQ(name.host, host - hosts);
    CHECK_EQ(name.number, number);
    size_t length = 0;
    for (; length < name.length && *pieces < end; (*pieces)++)
        length += (*pieces)->iov_len;
    CHECK_EQ(length, name.length);
    return length;
}

/* Whether the send holds the next packets of its host, whole and as the kernel wants segments. Their number. */
static uint32_t check_send(const struct msghdr *message, struct host **host, size_t *length)
{
    const struct sockaddr_in *to = message->msg_name;
    const struct iovec *at = message->msg_iov, *end = at + message->msg_iovlen;
    size_t size = segment_size(message), last = 0;
    CHECK_EQ(ntohs(to->sin_port), PORT);
    CHECK(ntohl(to->sin_addr.s_addr) - 1 < HOSTS);
    *host = &hosts[ntohl(to->sin_addr.s_addr) - 1];
    *length = 0;
    uint32_t count = 0;
    for (; at < end; count++) {
        CHECK(count == 0 || last == size); /* only the last one is shorter */
        last = check_packet(*host, (*host)->next + count, &at, end);
        CHECK(size == 0 || last <= size);
        *length += last;
    }
    CHECK(count == 1 || (outbox.gso && size != 0 && count <= UDP_SEGMENTS_MAX && *length <= UDP_SEND_MAX));
    return count;
}

/* What becomes of one send: 0 if it is taken, or its errno. Every errno is about the whole send. */
static int decide(const struct msghdr *message, uint8_t fate)
{
    struct host *host;
    size_t length;
    uint32_t packets = check_send(message, &host, &length);
    int error = error_of(fate);
    if (error == 0 && length > UDP_SEND_MAX)
        error = EMSGSIZE;
    if (error == 0) {
        host->next += packets;
        host->got += packets;
    }
    return error;
}

static void lose(struct host *host, uint32_t packets)
{
    host->next += packets;
    host->lost += packets;
}

/* The sender learns of this error. Segments may be sent again as single packets; what is refused otherwise is lost,
 * and with EAGAIN the socket decides. */
static void note_refusal(const struct msghdr *message, int error)
{
    struct host *host;
    size_t length;
    uint32_t packets = check_send(message, &host, &length);
    bool segmented = segment_size(message) != 0;
    interruptions += error == EINTR || error == EAGAIN;
    if (error == EINTR)
        return;
    blocked.host = host;
    blocked.packets = packets;
    blocked.times = error == EAGAIN ? blocked.times + 1 : 0;
    if (error == EAGAIN || error == EBADF || error == ENOTSOCK || error == EPIPE ||
        (segmented && (error == EIO || error == EINVAL || error == EMSGSIZE)))
        return;
    lose(host, packets);
}

/* As poll(2) after EAGAIN. Of a writable socket only the second one in a row is about the send, which is lost. */
static int kernel_poll(struct pollfd *sockets, nfds_t count, int milliseconds)
{
    CHECK(count == 1 && milliseconds == 0 && sockets->fd == SOCKET && sockets->events == POLLOUT);
    CHECK(blocked.times == 1 || blocked.times == 2);
    bool writable = next_fate() & 1;
    sockets->revents = writable ? POLLOUT : 0;
    waits += !writable;
    if (writable && blocked.times == 2) {
        lose(blocked.host, blocked.packets);
        blocked.times = 0;
    }
    return writable ? 1 : 0;
}

/* As sendmmsg(2): how many were taken, or the error of the first. */
static int kernel_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    CHECK(fd == SOCKET && flags == MSG_DONTWAIT && count > 0 && count <= OUTBOX_WINDOW);
    calls++;
    for (unsigned i = 0; i < count; i++) {
        uint8_t fate = next_fate();
        int error = decide(&batch[i].msg_hdr, fate);
        if (error != 0) {
            if (i == 0)
                note_refusal(&batch[i].msg_hdr, error);
            errno = error;
            return i == 0 ? -1 : (int)i;
        }
        blocked.times = 0;
        if (fate & STOPS)
            return (int)(i + 1);
    }
    return (int)count;
}

/* ---- the sender ---- */

static void name_packet(uint8_t *bytes, struct host *host, size_t length)
{
    struct name name = {(uint16_t)(host - hosts), (uint16_t)length, host->added++};
    memcpy(bytes, &name, sizeof name);
}

/* Packets of one piece, all of one size. */
static void add_packets(struct host *host, size_t size, size_t count)
{
    for (; count > 0 && outbox_has_room(&outbox) && arena_used + size <= ARENA; count--, arena_used += size) {
        struct iovec whole = {arena + arena_used, size};
        name_packet(whole.iov_base, host, size);
        outbox_add(&outbox, &host->peer, &whole, 1);
    }
}

/* As many segments as a superpacket may have; headers in the outbox, payload in common. */
static void add_superpacket(struct host *host, size_t size, size_t last, size_t count)
{
    static uint8_t payload[WHOLE_MAX];
    if (!outbox_has_room(&outbox))
        return;
    if (count > WHOLE_MAX / size)
        count = WHOLE_MAX / size;
    if (count > SEGMENT_COUNT_MAX)
        count = SEGMENT_COUNT_MAX;
    for (size_t i = 0; i < count; i++) {
        size_t length = i + 1 == count ? 1 + last % size : size;
        struct iovec pieces[2] = {{outbox_new_header(&outbox), NAMED}, {payload, length}};
        name_packet(pieces[0].iov_base, host, NAMED + length);
        outbox_add(&outbox, &host->peer, pieces, 2);
    }
    CHECK(outbox.count <= OUTBOX_MESSAGES && outbox.headers <= OUTBOX_PACKETS);
}

static uint64_t owed(void)
{
    uint64_t packets = 0;
    for (size_t i = 0; i < HOSTS; i++)
        packets += hosts[i].added - hosts[i].next;
    return packets;
}

static void check_counters(void)
{
    uint64_t got = 0, lost = 0, dropped = 0;
    for (size_t i = 0; i < HOSTS; i++) {
        CHECK_EQ(hosts[i].peer.sent_packets, hosts[i].got);
        CHECK_EQ(hosts[i].peer.dropped_packets, hosts[i].lost);
        got += hosts[i].got;
        lost += hosts[i].lost;
    }
    for (size_t i = 0; i < DROP_COUNT; i++)
        dropped += counted.drops[i];
    CHECK_EQ(counted.udp_sent_packets, got);
    CHECK_EQ(dropped, lost);
}

static void start_batch(void)
{
    CHECK(outbox_is_empty(&outbox));
    outbox_reset(&outbox);
    arena_used = 0;
}

/* What is given up is lost, and the next batch begins. */
static void abandon(void)
{
    for (size_t i = 0; i < HOSTS; i++) {
        hosts[i].lost += hosts[i].added - hosts[i].next;
        hosts[i].next = hosts[i].added;
    }
    outbox_abandon(&outbox);
    check_counters();
    start_batch();
}

/* Flushes until the outbox is empty, the socket is full or dead; in a bounded number of calls. */
static void flush(uint64_t now_ns)
{
    uint64_t before = owed();
    calls = waits = interruptions = blocked.times = 0;
    int status = outbox_flush(&outbox, SOCKET, now_ns);
    CHECK(calls <= 2 * before + interruptions + 1); /* each takes, loses, or divides a message */
    CHECK_EQ(status == 0, owed() == 0);
    CHECK_EQ(status == 1, waits == 1);
    CHECK(status == 0 || status == 1 || status == -EBADF || status == -ENOTSOCK || status == -EPIPE);
    check_counters();
    if (status == 0)
        start_batch();
    else if (status < 0)
        abandon();
}

static void begin(bool gso)
{
    memset(hosts, 0, sizeof hosts);
    memset(&counted, 0, sizeof counted);
    for (uint32_t i = 0; i < HOSTS; i++)
        hosts[i].peer.address = i + 1;
    outbox_reset(&outbox);
    arena_used = 0;
    outbox.gso = gso;
    outbox.port = PORT;
    outbox.counters = &counted;
    outbox.offload_changed = false;
}

/* ---- libFuzzer ---- */

/* Found: one more packet for a peer whose run has left, while those of another one wait, was lost. */
static void write_found(const char *directory)
{
    static const struct step steps[] = {{ADD_PACKETS, 0, 2, 0, {0, 100}},
                                        {ADD_PACKETS, 1, 1, 0, {0, 100}},
                                        {FLUSH, 0, 0, 0, {0, 0}},
                                        {ADD_PACKETS, 0, 1, 0, {0, 100}}};
    enum { WAITS = 144 };
    uint8_t input[1 + sizeof steps + 4] = {1};
    memcpy(input + 1, steps, sizeof steps);
    memcpy(input + 1 + sizeof steps, (const uint8_t[]){0, WAITS, WAITS, 0}, 4);
    CHECK_EQ(error_of(WAITS), EAGAIN);
    corpus_write(directory, input, sizeof input);
}

/* Runs for some peers in turn, a superpacket among them, then sends that meet one errno after another. */
static void write_seeds(const char *directory)
{
    enum { STEPS = 24, SENDS = 40 };
    write_found(directory);
    for (unsigned seed = 0; seed < 36; seed++) {
        uint8_t input[1 + STEPS * sizeof(struct step) + SENDS] = {(uint8_t)(seed % 2)};
        for (unsigned i = 0; i < STEPS; i++) {
            struct step step = {.what = i % 8 == 7 ? FLUSH : i % 5 == 4 ? ADD_SUPERPACKET : ADD_PACKETS,
                                .host = (uint8_t)(i % 3),
                                .count = (uint8_t)(5 + seed * i),
                                .detail = (uint8_t)i,
                                .size = {(uint8_t)(i % 4 == 0 ? 5 : 0), 200}};
            memcpy(input + 1 + i * sizeof step, &step, sizeof step);
        }
        for (unsigned i = 0; i < SENDS; i++) {
            uint8_t fate = i % 3 == 2 ? (uint8_t)(TAKEN_BELOW + seed) : (uint8_t)(i % 5 == 0 ? STOPS : 0);
            input[sizeof input - 1 - i] = fate;
        }
        corpus_write(directory, input, sizeof input);
    }
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    faults_replace_send(kernel_send);
    faults_replace_poll(kernel_poll);
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

static void run_step(const struct step *step, uint64_t *now_ns)
{
    struct host *host = &hosts[step->host % HOSTS];
    size_t size = (size_t)step->size[0] << 8 | step->size[1];
    switch ((enum what)(step->what % WHATS)) {
    case ADD_PACKETS:
        add_packets(host, size < NAMED ? NAMED : size, step->count);
        break;
    case ADD_SUPERPACKET:
        add_superpacket(host, 1 + size % (WHOLE_MAX - NAMED), step->detail, (size_t)step->count * 33 + 1);
        break;
    case FLUSH:
        flush(*now_ns);
        break;
    case LATER:
        *now_ns += (uint64_t)step->detail * UINT64_C(100000000);
        break;
    default:
        abandon();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t now_ns = 1;
    if (size == 0)
        return 0;
    begin(data[0] & 1);
    fates.begin = data + 1;
    fates.end = data + size;
    for (struct step step; (size_t)(fates.end - fates.begin) >= sizeof step;) {
        memcpy(&step, fates.begin, sizeof step);
        fates.begin += sizeof step;
        run_step(&step, &now_ns);
    }
    fates.begin = fates.end; /* from here on the kernel takes everything */
    flush(now_ns);
    CHECK_EQ(owed(), 0);
    return 0;
}
