#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "coalesce.h"
#include "offload.h"
#include "outbox.h"
#include "segment.h"
#include "transport.h"
#include "udp_socket.h"

enum {
    /* One turn of one direction serves at most this much, so the other one, a stop or a table change waits no
     * longer than that; what it reads also stays in the processor's cache until it is sent. */
    TURN_PACKETS = 64,
    TURN_BYTES = 64 << 10,
    /* A superpacket leaves its sender in two sends: a batch of several receives joins its halves again. */
    TURN_MERGED_RECEIVES = 16,

    POLL_STREAK = 8,      /* wake-ups that make busy polling worth while */
    POLL_BYTES = 4 << 10, /* a wake-up that moves more is bulk */

    SLOT_SIZE = PACKET_MAX + 1,           /* one byte more than any packet, so a longer datagram shows as truncated */
    INBOUND_STRIDE = SLOT_SIZE + 17 * 64, /* an odd number of cache lines: slots do not share cache sets */
};

/* The TUN refused a superpacket: it is asked again after this long. */
#define SUPERPACKET_RETRY_NS UINT64_C(10000000000)

enum wake_source { WAKE_TUN, WAKE_UDP, WAKE_CONTROL };

struct inbox {
    size_t size; /* messages one receive asks for */
    struct mmsghdr headers[TURN_PACKETS];
    struct iovec iov[TURN_PACKETS];
    struct sockaddr_in from[TURN_PACKETS];
    uint8_t control[TURN_PACKETS][UDP_CONTROL_SIZE] __attribute__((aligned(8)));
};

struct worker_buffers {
    struct outbox outbox;
    struct inbox inbox;
    struct coalescer coalescer;
    uint8_t outbound[TURN_BYTES + SLOT_SIZE];
    uint8_t inbound[TURN_PACKETS][INBOUND_STRIDE];
};

static void signal_event(const struct worker *worker)
{
    uint64_t one = 1;
    ssize_t n = write(worker->event_fd, &one, sizeof one);
    (void)n; /* EAGAIN: the counter is full, so the reader is awake already */
}

static void count_drop(struct worker *worker, enum filter_drop drop)
{
    counter_add(&worker->counters.drops[drop], 1);
}

/* ---- refusals ---- */

/* Tells Python once per outer source; a collision of two sources in the small table only costs a repeat. */
static void report_refusal(struct worker *worker, const struct refusal *refusal)
{
    uint32_t *seen = &worker->refusal_seen[(refusal->outer_source * UINT32_C(2654435761)) >> 24];
    if (*seen == refusal->outer_source)
        return;
    /* relaxed: only this thread writes it; acquire: the reader is done with the places it has given back */
    unsigned written = atomic_load_explicit(&worker->refusals_written, memory_order_relaxed);
    unsigned read = atomic_load_explicit(&worker->refusals_read, memory_order_acquire);
    if (written - read == REFUSAL_RING)
        return; /* the reader is behind: this source will be reported at a later refusal */
    *seen = refusal->outer_source;
    worker->refusals[written % REFUSAL_RING] = *refusal;
    /* release: the entry is written before the reader may see it */
    atomic_store_explicit(&worker->refusals_written, written + 1, memory_order_release);
    signal_event(worker);
}

bool worker_next_refusal(struct worker *worker, struct refusal *refusal)
{
    /* the mirror image of report_refusal */
    unsigned read = atomic_load_explicit(&worker->refusals_read, memory_order_relaxed);
    if (read == atomic_load_explicit(&worker->refusals_written, memory_order_acquire))
        return false;
    *refusal = worker->refusals[read % REFUSAL_RING];
    atomic_store_explicit(&worker->refusals_read, read + 1, memory_order_release);
    return true;
}

/* ---- TUN to UDP ---- */

static int answer_unroutable(struct worker *worker, const struct packet *packet)
{
    uint8_t reply[ICMP_REPLY_MAX];
    if (!icmp_may_answer(packet) || !icmp_limiter_allow(&worker->limiter, worker->now_ns)) {
        counter_add(&worker->counters.icmp_suppressed, 1);
        return 0;
    }
    struct virtio_net_hdr vnet = {0};
    size_t length = icmp_net_unreachable(reply, worker->tun_address, packet);
    struct iovec iov[2] = {{&vnet, sizeof vnet}, {reply, length}};
    int error = tun_device_write(&worker->tun, iov, 2);
    counter_add(error == 0 ? &worker->counters.icmp_replies : &worker->counters.icmp_suppressed, 1);
    return tun_device_is_gone(error) ? error : 0;
}

/* Puts a packet's segments into the outbox. 0 or -EINVAL. */
static int add_segments(struct outbox *outbox, const struct packet *packet,
                        const struct virtio_net_hdr *vnet, struct peer *peer)
{
    struct segmenter segmenter;
    int error = segment_begin(&segmenter, packet, vnet);
    if (error < 0)
        return error;
    for (size_t i = 0; i < segmenter.count; i++) {
        uint8_t *header = outbox_new_header(outbox);
        struct iovec pieces[2] = {{header, segmenter.headers}};
        segment_make(&segmenter, i, header, &pieces[1]);
        outbox_add(outbox, peer, pieces, 2);
    }
    return 0;
}

/* Puts one packet or superpacket into the outbox, its checksums complete. 0 or -EINVAL. */
static int add_outbound(struct worker *worker, uint8_t *bytes, const struct packet *packet,
                        const struct virtio_net_hdr *vnet, struct peer *peer)
{
    struct outbox *outbox = &worker->buffers->outbox;
    if (vnet->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        counter_add(&worker->counters.tun_read_superpackets, 1);
        return add_segments(outbox, packet, vnet, peer);
    }
    if (vnet->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        int error = segment_complete_checksum(bytes, packet->length, packet->protocol, vnet);
        if (error < 0)
            return error;
    }
    struct iovec whole = {bytes, packet->length};
    outbox_add(outbox, peer, &whole, 1);
    return 0;
}

/* Decides about one packet read from the TUN: into the outbox, or dropped and counted. 0 or -errno. */
static int take_outbound(struct worker *worker, uint8_t *bytes, size_t length,
                         const struct virtio_net_hdr *vnet)
{
    struct packet packet;
    struct peer *peer;
    enum packet_fault fault = packet_parse(&packet, bytes, length);
    if (fault != PACKET_OK) {
        count_drop(worker, fault == PACKET_IPV6 ? DROP_TUN_IPV6 : DROP_TUN_MALFORMED);
        return 0;
    }
    enum filter_drop drop = filter_outbound(worker->own, worker->routes, worker->peers, &packet, &peer);
    if (drop == DROP_NONE && add_outbound(worker, bytes, &packet, vnet, peer) < 0)
        drop = DROP_TUN_MALFORMED;
    if (drop == DROP_NONE)
        return 0;
    count_drop(worker, drop);
    return drop == DROP_TUN_NO_ROUTE ? answer_unroutable(worker, &packet) : 0;
}

/* Reads a turn's worth of packets into the empty outbox. 0 or -errno. */
static int fill_outbox(struct worker *worker)
{
    struct outbox *outbox = &worker->buffers->outbox;
    outbox_reset(outbox);
    size_t used = 0;
    for (int turns = 0; turns < TURN_PACKETS && used < TURN_BYTES && outbox_has_room(outbox); turns++) {
        struct virtio_net_hdr vnet;
        uint8_t *slot = worker->buffers->outbound + used;
        ssize_t n = tun_device_read(&worker->tun, &vnet, slot, SLOT_SIZE);
        if (n == -EAGAIN)
            return 0;
        if (n < 0)
            return (int)n;
        size_t length = (size_t)n;
        counter_add(&worker->counters.tun_read_packets, 1);
        counter_add(&worker->counters.tun_read_bytes, length);
        int error = take_outbound(worker, slot, length, &vnet);
        if (error < 0)
            return error;
        used += length;
    }
    return 0;
}

/* While the socket is full the TUN is left alone; its queue fills and the loss shows there, at no cost to us. */
static int set_paused(struct worker *worker, bool paused)
{
    if (worker->paused == paused)
        return 0;
    struct epoll_event tun = {.events = paused ? 0 : EPOLLIN, .data.u32 = WAKE_TUN};
    struct epoll_event udp = {.events = paused ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.u32 = WAKE_UDP};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, worker->tun_fd, &tun) < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, worker->udp_fd, &udp) < 0)
        return -errno;
    worker->paused = paused;
    if (paused)
        counter_add(&worker->counters.send_pauses, 1);
    return 0;
}

/* Sends what the outbox holds, or as much as the socket takes. 0 or -errno. */
static int flush_outbox(struct worker *worker)
{
    const struct outbox_counters counters = {
        .sent_packets = &worker->counters.udp_sent_packets,
        .sent_bytes = &worker->counters.udp_sent_bytes,
        .segmented_sends = &worker->counters.udp_segmented_sends,
        .fallbacks = &worker->counters.send_fallbacks,
        .drops = worker->counters.drops,
    };
    int full = outbox_flush(&worker->buffers->outbox, worker->udp_fd, worker->now_ns, &counters);
    return full < 0 ? full : set_paused(worker, full > 0);
}

static int serve_tun(struct worker *worker)
{
    int error = fill_outbox(worker);
    /* What was read before an error still leaves. */
    int flushed = flush_outbox(worker);
    return error < 0 ? error : flushed;
}

/* ---- UDP to TUN ---- */

/* Decides about one datagram's packet. Whether it goes to the TUN. */
static bool admit(struct worker *worker, const uint8_t *bytes, size_t length, uint32_t outer_source,
                  struct packet *packet)
{
    struct peer *sender = NULL;
    struct refusal refusal = {.outer_source = outer_source};
    enum packet_fault fault = packet_parse(packet, bytes, length);
    enum filter_drop drop = filter_inbound_fault(fault);
    if (fault == PACKET_OK) {
        drop = filter_inbound(worker->own, worker->routes, worker->peers, packet, outer_source, &sender);
        refusal.inner_source = packet->source;
        refusal.inner_destination = packet->destination;
    }
    if (drop != DROP_NONE) {
        count_drop(worker, drop);
        refusal.reason = drop;
        report_refusal(worker, &refusal);
        return false;
    }
    if (sender != NULL) {
        counter_add(&sender->received_packets, 1);
        counter_add(&sender->received_bytes, length);
    }
    return true;
}

static void count_written(struct worker *worker, size_t packets, size_t bytes)
{
    counter_add(&worker->counters.tun_written_packets, packets);
    counter_add(&worker->counters.tun_written_bytes, bytes);
}

/* Writes the packets of a superpacket that the TUN refused, one by one. 0 or -errno. */
static int write_singly(struct worker *worker, const struct bundle *bundle)
{
    const struct coalescer *coalescer = &worker->buffers->coalescer;
    uint16_t index = bundle->first;
    for (size_t left = bundle->count; left > 0; left--) {
        const struct coalesced_packet *packet = &coalescer->packets[index];
        struct virtio_net_hdr vnet = {.flags = VIRTIO_NET_HDR_F_DATA_VALID}; /* as in coalesce_build */
        struct iovec iov[2] = {{&vnet, sizeof vnet}, {(void *)(uintptr_t)packet->bytes, packet->length}};
        int error = tun_device_write(&worker->tun, iov, 2);
        if (tun_device_is_gone(error))
            return error;
        if (error == 0)
            count_written(worker, 1, packet->length);
        else
            count_drop(worker, DROP_UDP_TUN_REFUSED);
        index = packet->next;
    }
    return 0;
}

/* The TUN refused this superpacket: what it holds is written, and the next ones are not merged for a while. */
static int fall_back_to_singles(struct worker *worker, const struct bundle *bundle)
{
    uint64_t *until = bundle->protocol == PROTOCOL_TCP ? &worker->tcp_single_until_ns : &worker->udp_single_until_ns;
    *until = worker->now_ns + SUPERPACKET_RETRY_NS;
    counter_add(&worker->counters.write_fallbacks, 1);
    return write_singly(worker, bundle);
}

static int write_bundle(struct worker *worker, size_t index)
{
    const struct coalescer *coalescer = &worker->buffers->coalescer;
    const struct bundle *bundle = &coalescer->bundles[index];
    struct virtio_net_hdr vnet;
    uint8_t header[SEGMENT_HEADER_MAX];
    struct iovec iov[COALESCE_IOVECS];
    size_t count = coalesce_build(coalescer, index, &vnet, header, iov);
    int error = tun_device_write(&worker->tun, iov, count);
    if (tun_device_is_gone(error))
        return error;
    if (error == 0) {
        size_t bytes = (size_t)bundle->headers * bundle->count + bundle->payload;
        count_written(worker, bundle->count, bundle->count == 1 ? iov[1].iov_len : bytes);
        if (bundle->count > 1)
            counter_add(&worker->counters.tun_written_superpackets, 1);
        return 0;
    }
    if (bundle->count > 1 && tun_device_refused_superpacket(error))
        return fall_back_to_singles(worker, bundle);
    counter_add(&worker->counters.drops[DROP_UDP_TUN_REFUSED], bundle->count);
    return 0;
}

/* Hands the batch to the TUN and starts an empty one. 0 or -errno. */
static int write_batch(struct worker *worker)
{
    struct coalescer *coalescer = &worker->buffers->coalescer;
    int error = 0;
    for (size_t i = 0; i < coalescer->bundle_count && error == 0; i++)
        error = write_bundle(worker, i);
    coalesce_reset(coalescer);
    return error;
}

/* Takes what one receive brought: one datagram, or several of one size one after another. 0 or -errno. */
static int take_inbound(struct worker *worker, const struct mmsghdr *message, const uint8_t *bytes,
                        const struct sockaddr_in *from)
{
    uint32_t outer_source = ntohl(from->sin_addr.s_addr);
    size_t size = udp_socket_datagram_size(message), left = message->msg_len;
    if (message->msg_hdr.msg_flags & MSG_TRUNC) {
        counter_add(&worker->counters.udp_received_packets, 1);
        count_drop(worker, DROP_UDP_TRUNCATED);
        return 0;
    }
    if (size < left)
        counter_add(&worker->counters.udp_merged_receives, 1);
    do { /* an empty datagram counts, too */
        struct packet packet;
        size_t length = left < size ? left : size;
        counter_add(&worker->counters.udp_received_packets, 1);
        counter_add(&worker->counters.udp_received_bytes, length);
        if (admit(worker, bytes, length, outer_source, &packet) &&
            !coalesce_add(&worker->buffers->coalescer, &packet)) {
            int error = write_batch(worker);
            if (error < 0)
                return error;
            (void)coalesce_add(&worker->buffers->coalescer, &packet); /* there is room: it is empty */
        }
        bytes += length;
        left -= length;
    } while (left > 0);
    return 0;
}

static int serve_udp(struct worker *worker)
{
    struct inbox *box = &worker->buffers->inbox;
    struct coalescer *coalescer = &worker->buffers->coalescer;
    for (size_t i = 0; i < box->size; i++) { /* the kernel writes these: set them anew */
        box->headers[i].msg_hdr.msg_namelen = sizeof box->from[i];
        box->headers[i].msg_hdr.msg_controllen = sizeof box->control[i];
    }
    int n = udp_socket_receive_batch(worker->udp_fd, box->headers, box->size);
    if (n < 0) {
        if (udp_socket_is_dead(n))
            return n;
        if (n != -EAGAIN)
            counter_add(&worker->counters.receive_errors, 1);
        return 0;
    }
    coalescer->tcp = worker->offloads & OFFLOAD_TSO && worker->now_ns >= worker->tcp_single_until_ns;
    coalescer->udp = worker->offloads & OFFLOAD_USO && worker->now_ns >= worker->udp_single_until_ns;
    for (int i = 0; i < n; i++) {
        int error = take_inbound(worker, &box->headers[i], worker->buffers->inbound[i], &box->from[i]);
        if (error < 0)
            return error;
    }
    return write_batch(worker);
}

/* ---- the loop ---- */

static int handle_wake(struct worker *worker, const struct epoll_event *event)
{
    switch ((enum wake_source)event->data.u32) {
    case WAKE_TUN:
        if (event->events & (EPOLLERR | EPOLLHUP))
            return -ENODEV; /* the device was deleted */
        return serve_tun(worker);
    case WAKE_UDP:
        if (event->events & EPOLLHUP)
            return -ENOTCONN; /* shut down */
        if (event->events & EPOLLERR && udp_socket_clear_error(worker->udp_fd) < 0)
            counter_add(&worker->counters.receive_errors, 1);
        if (event->events & EPOLLOUT) {
            int error = flush_outbox(worker);
            if (error < 0)
                return error;
        }
        return event->events & EPOLLIN ? serve_udp(worker) : 0;
    case WAKE_CONTROL:
        return 0; /* stop is looked at after every wake-up; the eventfd stays readable, and nobody waits again */
    }
    return 0;
}

/* acq_rel in both: see pump_grace_begin in tunpump.c, which synchronises through the same counter. */
static void become_active(struct worker *worker)
{
    atomic_fetch_add_explicit(&worker->passes, 1, memory_order_acq_rel);
}

static void become_quiescent(struct worker *worker)
{
    atomic_fetch_add_explicit(&worker->passes, 1, memory_order_acq_rel);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now); /* cannot fail: our clocks exist on every Linux */
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static uint64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* ---- busy polling: to look again for a moment is cheaper than to sleep and be woken ---- */

/* How long to sleep, for epoll_wait: not at all while polling may pay. */
static int sleep_ms(const struct worker *worker)
{
    bool polls = worker->poll_streak >= POLL_STREAK;
    return polls && monotonic_ns() - worker->now_ns < worker->busy_poll_ns ? 0 : -1;
}

/* Polling starts after a streak of small wake-ups that came soon one after another, and pauses at the first that
 * comes late: sparse traffic costs no processor time. Bulk ends it, too: a batch that gathers while the worker
 * sleeps is cheaper than the packets that polling would pick up. */
static void note_wake_up(struct worker *worker, uint64_t gap_ns, uint64_t moved)
{
    if (moved > POLL_BYTES)
        worker->poll_streak = 0;
    else if (gap_ns > worker->busy_poll_ns)
        worker->poll_streak /= 2;
    else if (worker->poll_streak < POLL_STREAK)
        worker->poll_streak++;
}

/* The bytes that passed so far, in either direction. */
static uint64_t bytes_moved(const struct worker *worker)
{
    return counter_read(&worker->counters.tun_read_bytes) + counter_read(&worker->counters.udp_received_bytes);
}

/* Moves packets until it is told to stop (0) or cannot go on (-errno). */
static int worker_loop(struct worker *worker)
{
    for (;;) {
        struct epoll_event events[3];
        /* The outbox keeps peers over a pause; a peer it points to must not be freed meanwhile. */
        bool holds_peers = worker->paused;
        if (!holds_peers)
            become_quiescent(worker);
        int n = epoll_wait(worker->epoll_fd, events, 3, sleep_ms(worker));
        if (!holds_peers)
            become_active(worker);
        if (n < 0 && errno != EINTR)
            return -errno;
        /* acquire: whatever the stopping thread did before it asked is visible */
        if (atomic_load_explicit(&worker->stop, memory_order_acquire))
            return 0;
        if (n == 0)
            (void)sched_yield(); /* who sends or receives the next packet may be waiting for this processor */
        if (n <= 0)
            continue;
        counter_add(&worker->counters.wakeups, 1);
        uint64_t now_ns = monotonic_ns();
        uint64_t gap_ns = now_ns - worker->now_ns, before = bytes_moved(worker);
        worker->now_ns = now_ns;
        for (int i = 0; i < n; i++) {
            int error = handle_wake(worker, &events[i]);
            if (error < 0)
                return error;
        }
        note_wake_up(worker, gap_ns, bytes_moved(worker) - before);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    become_active(worker);
    int error = worker_loop(worker);
    become_quiescent(worker);
    counter_add(&worker->past_cpu_ns, clock_ns(CLOCK_THREAD_CPUTIME_ID));
    if (error < 0) {
        /* release: the counters of the last turn are visible to who sees the failure */
        atomic_store_explicit(&worker->failure, error, memory_order_release);
        signal_event(worker);
    }
    return NULL;
}

/* ---- life cycle ---- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void prepare_buffers(struct worker *worker, uint16_t port)
{
    struct worker_buffers *buffers = worker->buffers;
    outbox_reset(&buffers->outbox);
    coalesce_reset(&buffers->coalescer);
    buffers->outbox.port = port;
    buffers->outbox.gso = (worker->offloads & OFFLOAD_UDP_GSO) != 0;
    struct inbox *inbox = &buffers->inbox;
    inbox->size = worker->offloads & OFFLOAD_UDP_GRO ? TURN_MERGED_RECEIVES : TURN_PACKETS;
    for (size_t i = 0; i < inbox->size; i++) {
        inbox->iov[i] = (struct iovec){.iov_base = buffers->inbound[i], .iov_len = SLOT_SIZE};
        inbox->headers[i].msg_hdr = (struct msghdr){
            .msg_name = &inbox->from[i],
            .msg_iov = &inbox->iov[i],
            .msg_iovlen = 1,
            .msg_control = inbox->control[i],
        };
    }
}

static int watch_fd(int epoll_fd, int fd, enum wake_source source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = source};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* A new epoll set with these ends, or -errno. */
static int watch_ends(const struct worker *worker, int tun_fd, int udp_fd)
{
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        return -errno;
    int error = watch_fd(epoll_fd, tun_fd, WAKE_TUN);
    if (error == 0)
        error = watch_fd(epoll_fd, udp_fd, WAKE_UDP);
    if (error == 0)
        error = watch_fd(epoll_fd, worker->wake_fd, WAKE_CONTROL);
    if (error == 0)
        return epoll_fd;
    close(epoll_fd);
    return error;
}

static int local_port(int fd, uint16_t *port)
{
    struct sockaddr_in local = {0};
    socklen_t size = sizeof local;
    if (getsockname(fd, (struct sockaddr *)&local, &size) < 0)
        return -errno;
    *port = ntohs(local.sin_port);
    return 0;
}

/* Probes the ends and makes them the worker's, which is not running. 0 or -errno, and then it has its old ones. */
static int join_ends(struct worker *worker, int tun_fd, int udp_fd)
{
    uint16_t port = 0;
    struct tun_device tun = {0};
    int error = local_port(udp_fd, &port);
    if (error == 0)
        error = tun_device_attach(&tun, tun_fd, worker->wanted);
    if (error < 0)
        return error;
    int epoll_fd = watch_ends(worker, tun_fd, udp_fd);
    if (epoll_fd < 0)
        return epoll_fd;
    close_fd(&worker->epoll_fd);
    worker->epoll_fd = epoll_fd;
    worker->tun_fd = tun_fd;
    worker->udp_fd = udp_fd;
    worker->tun = tun;
    worker->offloads = tun.offloads | udp_socket_attach(udp_fd, worker->wanted);
    worker->paused = false;
    prepare_buffers(worker, port);
    return 0;
}

int worker_init(struct worker *worker)
{
    int error = 0;
    worker->buffers = calloc(1, sizeof *worker->buffers);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->buffers == NULL)
        error = -ENOMEM;
    else if (worker->wake_fd < 0 || worker->event_fd < 0)
        error = -errno;
    if (error == 0)
        error = join_ends(worker, worker->tun_fd, worker->udp_fd);
    if (error < 0)
        worker_destroy(worker);
    return error;
}

int worker_rejoin(struct worker *worker, int tun_fd, int udp_fd)
{
    int error = join_ends(worker, tun_fd, udp_fd);
    if (error < 0)
        return error;
    uint64_t wakes;
    ssize_t n = read(worker->wake_fd, &wakes, sizeof wakes);
    (void)n; /* EAGAIN: nobody has woken it */
    worker->tcp_single_until_ns = worker->udp_single_until_ns = 0;
    /* relaxed: the thread that will read them is made after this */
    atomic_store_explicit(&worker->failure, 0, memory_order_relaxed);
    atomic_store_explicit(&worker->stop, false, memory_order_relaxed);
    return 0;
}

int worker_start(struct worker *worker)
{
    /* Signals are Python's: the thread inherits a mask with all of them blocked, but those that tell of a fault
     * of its own, which would end the process without a word from faulthandler or a sanitizer. */
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&blocked, faults[i]);
    int error = pthread_sigmask(SIG_SETMASK, &blocked, &before);
    if (error != 0)
        return -error;
    error = pthread_create(&worker->thread, NULL, worker_main, worker);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL); /* it succeeded a moment ago with the same arguments */
    if (error != 0)
        return -error;
    worker->started = true;
    (void)pthread_setname_np(worker->thread, "flannel-pump"); /* a name for top; nothing depends on it */
    return 0;
}

void worker_stop(struct worker *worker)
{
    /* release: pairs with the acquire in worker_loop */
    atomic_store_explicit(&worker->stop, true, memory_order_release);
    if (!worker->started)
        return;
    uint64_t one = 1;
    ssize_t n = write(worker->wake_fd, &one, sizeof one);
    (void)n; /* cannot fail: the counter is 0 and the descriptor ours */
    (void)pthread_join(worker->thread, NULL); /* the thread exists and nobody else joins it */
    worker->started = false;
}

void worker_destroy(struct worker *worker)
{
    close_fd(&worker->epoll_fd);
    close_fd(&worker->wake_fd);
    close_fd(&worker->event_fd);
    free(worker->buffers);
    worker->buffers = NULL;
}
