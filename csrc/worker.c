#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "tun_device.h"
#include "udp_socket.h"

/* One turn serves at most this many packets of one direction, so the other one, a stop or a table change waits
 * no longer than that. */
enum { BATCH = 64 };

/* A slot holds the largest packet and one byte more, so a longer datagram shows as truncated. */
enum { SLOT_SIZE = PACKET_MAX + 1 };

enum wake_source { WAKE_TUN, WAKE_UDP, WAKE_CONTROL };

/* Messages on their way to the socket: [first, count) are still to be sent. */
struct outbox {
    size_t first, count;
    struct mmsghdr headers[BATCH];
    struct iovec iov[BATCH];
    struct sockaddr_in to[BATCH];
    struct peer *peers[BATCH];
};

struct inbox {
    struct mmsghdr headers[BATCH];
    struct iovec iov[BATCH];
    struct sockaddr_in from[BATCH];
};

struct worker_buffers {
    struct outbox outbox;
    struct inbox inbox;
    uint8_t outbound[BATCH][SLOT_SIZE];
    uint8_t inbound[BATCH][SLOT_SIZE];
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

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists on every Linux */
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Writes one packet to the TUN device. 0, or -errno if the device is gone; a packet it refused is *written = false. */
static int write_tun(struct worker *worker, const uint8_t *bytes, size_t length, bool *written)
{
    int error = tun_device_write(worker->tun_fd, bytes, length);
    *written = error == 0;
    return tun_device_is_gone(error) ? error : 0;
}

static int answer_unroutable(struct worker *worker, const struct packet *packet)
{
    uint8_t reply[ICMP_REPLY_MAX];
    if (!icmp_may_answer(packet) || !icmp_limiter_allow(&worker->limiter, monotonic_ns())) {
        counter_add(&worker->counters.icmp_suppressed, 1);
        return 0;
    }
    size_t length = icmp_net_unreachable(reply, worker->tun_address, packet);
    bool written;
    int error = write_tun(worker, reply, length, &written);
    counter_add(written ? &worker->counters.icmp_replies : &worker->counters.icmp_suppressed, 1);
    return error;
}

/* Decides about one packet read from the TUN. *peer is where to send it, NULL if it is dropped. 0 or -errno. */
static int route_outbound(struct worker *worker, const uint8_t *bytes, size_t length, struct peer **peer)
{
    struct packet packet;
    *peer = NULL;
    enum packet_fault fault = packet_parse(&packet, bytes, length);
    if (fault != PACKET_OK) {
        count_drop(worker, fault == PACKET_IPV6 ? DROP_TUN_IPV6 : DROP_TUN_MALFORMED);
        return 0;
    }
    enum filter_drop drop = filter_outbound(worker->own, worker->routes, worker->peers, &packet, peer);
    if (drop == DROP_NONE)
        return 0;
    count_drop(worker, drop);
    return drop == DROP_TUN_NO_ROUTE ? answer_unroutable(worker, &packet) : 0;
}

/* Reads up to a batch of packets into the empty outbox. 0 or -errno. */
static int fill_outbox(struct worker *worker)
{
    struct outbox *box = &worker->buffers->outbox;
    box->first = box->count = 0;
    for (int turns = 0; turns < BATCH; turns++) {
        uint8_t *slot = worker->buffers->outbound[box->count];
        ssize_t n = tun_device_read(worker->tun_fd, slot, SLOT_SIZE);
        if (n == -EAGAIN)
            return 0;
        if (n < 0)
            return (int)n;
        size_t length = (size_t)n;
        counter_add(&worker->counters.tun_read_packets, 1);
        counter_add(&worker->counters.tun_read_bytes, length);
        struct peer *peer;
        int error = route_outbound(worker, slot, length, &peer);
        if (error < 0)
            return error;
        if (peer == NULL)
            continue;
        box->iov[box->count].iov_len = length;
        box->to[box->count].sin_addr.s_addr = htonl(peer->address);
        box->peers[box->count] = peer;
        box->count++;
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

static void count_sent(struct worker *worker, const struct outbox *box, size_t first, size_t count)
{
    uint64_t bytes = 0;
    for (size_t i = first; i < first + count; i++) {
        size_t length = box->iov[i].iov_len;
        bytes += length;
        counter_add(&box->peers[i]->sent_packets, 1);
        counter_add(&box->peers[i]->sent_bytes, length);
    }
    counter_add(&worker->counters.udp_sent_packets, count);
    counter_add(&worker->counters.udp_sent_bytes, bytes);
}

/* Sends what the outbox holds, or as much as the socket takes. 0 or -errno. */
static int flush_outbox(struct worker *worker)
{
    struct outbox *box = &worker->buffers->outbox;
    while (box->first < box->count) {
        int n = udp_socket_send_batch(worker->udp_fd, &box->headers[box->first], box->count - box->first);
        if (n >= 0) {
            count_sent(worker, box, box->first, (size_t)n);
            box->first += (size_t)n;
            continue;
        }
        enum filter_drop drop;
        switch (udp_socket_judge_send(n, &drop)) {
        case SEND_WAIT:
            return set_paused(worker, true);
        case SEND_DROP:
            count_drop(worker, drop);
            counter_add(&box->peers[box->first]->dropped_packets, 1);
            box->first++;
            break;
        case SEND_DEAD:
            return n;
        }
    }
    return set_paused(worker, false);
}

static int serve_tun(struct worker *worker)
{
    int error = fill_outbox(worker);
    /* What was read before an error still leaves. */
    int flushed = flush_outbox(worker);
    return error < 0 ? error : flushed;
}

/* ---- UDP to TUN ---- */

/* Decides about one datagram. Whether its packet goes to the TUN; *sender then is its peer, or NULL. */
static bool admit(struct worker *worker, const struct mmsghdr *message, const uint8_t *bytes,
                  const struct sockaddr_in *from, struct peer **sender)
{
    struct packet packet = {0};
    struct refusal refusal = {.outer_source = ntohl(from->sin_addr.s_addr)};
    enum filter_drop drop = DROP_UDP_TRUNCATED;
    if (!(message->msg_hdr.msg_flags & MSG_TRUNC)) {
        enum packet_fault fault = packet_parse(&packet, bytes, message->msg_len);
        drop = fault != PACKET_OK ? filter_inbound_fault(fault)
                                  : filter_inbound(worker->own, worker->routes, worker->peers, &packet,
                                                   refusal.outer_source, sender);
    }
    if (drop == DROP_NONE)
        return true;
    count_drop(worker, drop);
    refusal.inner_source = packet.source;
    refusal.inner_destination = packet.destination;
    refusal.reason = drop;
    report_refusal(worker, &refusal);
    return false;
}

/* Hands one datagram's packet to the TUN. 0 or -errno. */
static int deliver(struct worker *worker, const struct mmsghdr *message, const uint8_t *bytes,
                   const struct sockaddr_in *from)
{
    struct peer *sender = NULL;
    size_t length = message->msg_len;
    counter_add(&worker->counters.udp_received_packets, 1);
    counter_add(&worker->counters.udp_received_bytes, length);
    if (!admit(worker, message, bytes, from, &sender))
        return 0;
    if (sender != NULL) {
        counter_add(&sender->received_packets, 1);
        counter_add(&sender->received_bytes, length);
    }
    bool written;
    int error = write_tun(worker, bytes, length, &written);
    if (written) {
        counter_add(&worker->counters.tun_written_packets, 1);
        counter_add(&worker->counters.tun_written_bytes, length);
    } else {
        count_drop(worker, DROP_UDP_TUN_REFUSED);
    }
    return error;
}

static int serve_udp(struct worker *worker)
{
    struct inbox *box = &worker->buffers->inbox;
    for (size_t i = 0; i < BATCH; i++)
        box->headers[i].msg_hdr.msg_namelen = sizeof box->from[i]; /* the kernel writes it: set it anew */
    int n = udp_socket_receive_batch(worker->udp_fd, box->headers, BATCH);
    if (n < 0) {
        if (udp_socket_is_dead(n))
            return n;
        if (n != -EAGAIN)
            counter_add(&worker->counters.receive_errors, 1);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        int error = deliver(worker, &box->headers[i], worker->buffers->inbound[i], &box->from[i]);
        if (error < 0)
            return error;
    }
    return 0;
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

/* Moves packets until it is told to stop (0) or cannot go on (-errno). */
static int worker_loop(struct worker *worker)
{
    for (;;) {
        struct epoll_event events[3];
        /* The outbox keeps peers over a pause; a peer it points to must not be freed meanwhile. */
        bool holds_peers = worker->paused;
        if (!holds_peers)
            become_quiescent(worker);
        int n = epoll_wait(worker->epoll_fd, events, 3, -1);
        if (!holds_peers)
            become_active(worker);
        if (n < 0 && errno != EINTR)
            return -errno;
        counter_add(&worker->counters.wakeups, 1);
        /* acquire: whatever the stopping thread did before it asked is visible */
        if (atomic_load_explicit(&worker->stop, memory_order_acquire))
            return 0;
        for (int i = 0; i < n; i++) {
            int error = handle_wake(worker, &events[i]);
            if (error < 0)
                return error;
        }
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    become_active(worker);
    int error = worker_loop(worker);
    become_quiescent(worker);
    if (error < 0) {
        /* release: the counters of the last turn are visible to who sees the failure */
        atomic_store_explicit(&worker->failure, error, memory_order_release);
        signal_event(worker);
    }
    return NULL;
}

/* ---- life cycle ---- */

static void prepare_messages(struct worker_buffers *buffers, uint16_t port)
{
    for (size_t i = 0; i < BATCH; i++) {
        struct outbox *out = &buffers->outbox;
        out->to[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
        out->iov[i].iov_base = buffers->outbound[i];
        out->headers[i].msg_hdr = (struct msghdr){
            .msg_name = &out->to[i],
            .msg_namelen = sizeof out->to[i],
            .msg_iov = &out->iov[i],
            .msg_iovlen = 1,
        };
        struct inbox *in = &buffers->inbox;
        in->iov[i] = (struct iovec){.iov_base = buffers->inbound[i], .iov_len = SLOT_SIZE};
        in->headers[i].msg_hdr = (struct msghdr){
            .msg_name = &in->from[i],
            .msg_iov = &in->iov[i],
            .msg_iovlen = 1,
        };
    }
}

static int watch_fd(const struct worker *worker, int fd, enum wake_source source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = source};
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
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

int worker_init(struct worker *worker)
{
    uint16_t port = 0;
    int error = local_port(worker->udp_fd, &port);
    if (error < 0)
        return error;
    worker->buffers = calloc(1, sizeof *worker->buffers);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->buffers == NULL)
        error = -ENOMEM;
    else if (worker->epoll_fd < 0 || worker->wake_fd < 0 || worker->event_fd < 0)
        error = -errno;
    if (error == 0)
        error = watch_fd(worker, worker->tun_fd, WAKE_TUN);
    if (error == 0)
        error = watch_fd(worker, worker->udp_fd, WAKE_UDP);
    if (error == 0)
        error = watch_fd(worker, worker->wake_fd, WAKE_CONTROL);
    if (error < 0) {
        worker_destroy(worker);
        return error;
    }
    prepare_messages(worker->buffers, port);
    return 0;
}

int worker_start(struct worker *worker)
{
    /* Signals are Python's: the thread inherits a mask with all of them blocked. */
    sigset_t all, before;
    sigfillset(&all);
    int error = pthread_sigmask(SIG_SETMASK, &all, &before);
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
    if (!worker->started)
        return;
    uint64_t one = 1;
    /* release: pairs with the acquire in worker_loop */
    atomic_store_explicit(&worker->stop, true, memory_order_release);
    ssize_t n = write(worker->wake_fd, &one, sizeof one);
    (void)n; /* cannot fail: the counter is 0 and the descriptor ours */
    (void)pthread_join(worker->thread, NULL); /* the thread exists and nobody else joins it */
    worker->started = false;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void worker_destroy(struct worker *worker)
{
    close_fd(&worker->epoll_fd);
    close_fd(&worker->wake_fd);
    close_fd(&worker->event_fd);
    free(worker->buffers);
    worker->buffers = NULL;
}
