#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "inbound.h"
#include "outbound.h"

enum {
    POLL_STREAK = 8,      /* busy polling starts after this many small turns in close succession */
    POLL_BYTES = 4 << 10, /* a wake-up that moves more is bulk traffic */

    WATCHED = EPOLLIN | EPOLLRDHUP, /* of a socket that is shut down for reading, EPOLLIN alone would never end */
};

enum wake_source { WAKE_TUN, WAKE_UDP, WAKE_CONTROL };

/* ---- serving a wake-up ---- */

/* While the socket is full, the TUN is not read: its queue fills, and the kernel drops there what does not fit, before
 * it has cost us anything. */
static int set_paused(struct worker *worker, bool paused)
{
    if (worker->paused == paused)
        return 0;
    struct epoll_event tun = {.events = paused ? 0 : EPOLLIN, .data.u32 = WAKE_TUN};
    struct epoll_event udp = {.events = paused ? WATCHED | EPOLLOUT : WATCHED, .data.u32 = WAKE_UDP};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, worker->tunnel.ends.tun.fd, &tun) < 0 ||
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, worker->tunnel.ends.udp_fd, &udp) < 0)
        return -errno;
    worker->paused = paused;
    if (paused)
        counter_add(&worker->tunnel.counters.send_pauses, 1);
    return 0;
}

/* `full` is what outbound_serve and outbound_flush return. 0 or -errno. */
static int pause_while_full(struct worker *worker, int full)
{
    return full < 0 ? full : set_paused(worker, full > 0);
}

static int handle_wake(struct worker *worker, const struct epoll_event *event)
{
    switch ((enum wake_source)event->data.u32) {
    case WAKE_TUN:
        if (event->events & (EPOLLERR | EPOLLHUP))
            return -ENODEV; /* the device was deleted */
        return pause_while_full(worker, outbound_serve(&worker->tunnel, TURN_PACKETS));
    case WAKE_UDP:
        if (event->events & (EPOLLHUP | EPOLLRDHUP))
            return -ENOTCONN; /* shut down, by whoever has a copy of the descriptor */
        if (event->events & EPOLLERR && udp_socket_clear_error(worker->tunnel.ends.udp_fd) < 0)
            counter_add(&worker->tunnel.counters.receive_errors, 1);
        if (event->events & EPOLLOUT) {
            int error = pause_while_full(worker, outbound_flush(&worker->tunnel));
            if (error < 0)
                return error;
        }
        return event->events & EPOLLIN ? inbound_serve(&worker->tunnel, TURN_PACKETS) : 0;
    case WAKE_CONTROL:
        return 0; /* the loop checks for a stop after every wake-up, so the eventfd need not be read */
    }
    return 0;
}

static struct epoch *worker_epoch(const struct worker *worker)
{
    return &worker->tunnel.tables->epoch;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now = {0};
    (void)clock_gettime(clock, &now); /* fails for the clock of a thread that has ended, and then now stays 0 */
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static bool must_stop(const struct worker *worker)
{
    /* acquire: what the stopping thread did before it set the flag is visible */
    return atomic_load_explicit(&worker->stop, memory_order_acquire);
}

/* What has been carried so far, in both directions. */
struct moved {
    uint64_t tun_packets, udp_packets, bytes;
};

static struct moved moved_so_far(const struct worker *worker)
{
    const struct worker_counters *counters = &worker->tunnel.counters;
    return (struct moved){
        .tun_packets = counter_read(&counters->tun_read_packets),
        .udp_packets = counter_read(&counters->udp_received_packets),
        .bytes = counter_read(&counters->tun_read_bytes) + counter_read(&counters->udp_received_bytes),
    };
}

/* ---- busy polling: reading again for a short time is cheaper than sleeping and being woken ---- */

static bool should_poll(const struct worker *worker)
{
    return worker->poll_streak >= POLL_STREAK && !worker->paused && !must_stop(worker);
}

/* Notes that packets came. Polling starts after a streak of small turns in close succession and pauses at the first
 * late one, so sparse traffic costs no processor time. Bulk traffic ends it, too: packets that gather while the worker
 * sleeps are carried as one batch, which costs less than many small turns. */
static void note_moved(struct worker *worker, uint64_t bytes)
{
    uint64_t gap_ns = worker->tunnel.now_ns - worker->moved_ns;
    counter_add(&worker->tunnel.counters.wakeups, 1);
    worker->moved_ns = worker->tunnel.now_ns;
    if (bytes > POLL_BYTES)
        worker->poll_streak = 0;
    else if (gap_ns > worker->busy_poll_ns)
        worker->poll_streak /= 2;
    else if (worker->poll_streak < POLL_STREAK)
        worker->poll_streak++;
}

/* How many packets the next look takes: one, so that it leaves before the next is looked for, and twice as many each
 * time that more were waiting. */
static size_t next_limit(size_t limit, uint64_t taken)
{
    if (taken < limit)
        return 1;
    return limit < TURN_PACKETS ? limit * 2 : limit;
}

/* Reads both ends instead of asking epoll about them. The socket comes first: a packet written to the TUN may cause an
 * answer at once (an ACK), which the same look then reads. 0 or -errno. */
static int look(struct worker *worker, size_t *tun_limit, size_t *udp_limit)
{
    struct moved before = moved_so_far(worker);
    int error = inbound_serve(&worker->tunnel, *udp_limit);
    if (error == 0)
        error = pause_while_full(worker, outbound_serve(&worker->tunnel, *tun_limit));
    if (error < 0)
        return error;
    struct moved after = moved_so_far(worker);
    *tun_limit = next_limit(*tun_limit, after.tun_packets - before.tun_packets);
    *udp_limit = next_limit(*udp_limit, after.udp_packets - before.udp_packets);
    if (after.bytes != before.bytes)
        note_moved(worker, after.bytes - before.bytes);
    return 0;
}

/* Looks until nothing has come for busy_poll_ns or the streak has ended. 0 or -errno. */
static int busy_poll(struct worker *worker)
{
    size_t tun_limit = 1, udp_limit = 1;
    while (should_poll(worker)) {
        epoch_pass(worker_epoch(worker));
        worker->tunnel.now_ns = clock_ns(CLOCK_MONOTONIC);
        int error = look(worker, &tun_limit, &udp_limit);
        if (error < 0)
            return error;
        if (worker->moved_ns == worker->tunnel.now_ns)
            continue;
        if (worker->tunnel.now_ns - worker->moved_ns > worker->busy_poll_ns)
            return 0;
        (void)sched_yield(); /* the program with the next packet may be waiting for this processor */
    }
    return 0;
}

/* ---- the loop ---- */

/* Sleeps until an end or the stop wakes it, and serves each of them for one turn. 0 or -errno. */
static int sleep_and_serve(struct worker *worker)
{
    struct epoll_event events[3];
    /* During a pause the outbox points to peers, which must not be freed meanwhile. */
    bool holds_peers = worker->paused;
    if (!holds_peers)
        epoch_toggle_active(worker_epoch(worker));
    int n = epoll_wait(worker->epoll_fd, events, 3, -1);
    if (!holds_peers)
        epoch_toggle_active(worker_epoch(worker));
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    worker->tunnel.now_ns = clock_ns(CLOCK_MONOTONIC);
    uint64_t before = moved_so_far(worker).bytes;
    for (int i = 0; i < n; i++) {
        int error = handle_wake(worker, &events[i]);
        if (error < 0)
            return error;
    }
    note_moved(worker, moved_so_far(worker).bytes - before);
    return 0;
}

/* Carries packets until a stop (0) or until it cannot continue (-errno). */
static int worker_loop(struct worker *worker)
{
    int error = 0;
    while (error == 0 && !must_stop(worker)) {
        error = busy_poll(worker);
        if (error == 0)
            error = sleep_and_serve(worker);
    }
    return error;
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    epoch_toggle_active(worker_epoch(worker));
    int error = worker_loop(worker);
    outbox_abandon(&worker->tunnel.buffers->outbox);
    epoch_toggle_active(worker_epoch(worker));
    counter_add(&worker->ended_cpu_ns, clock_ns(CLOCK_THREAD_CPUTIME_ID));
    if (error < 0) {
        /* release: whoever sees the failure sees the counters of the last turn */
        atomic_store_explicit(&worker->failure, error, memory_order_release);
        tunnel_signal_event(&worker->tunnel);
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

/* A new epoll set with these ends, or -errno. */
static int watch_ends(const struct worker *worker, int tun_fd, int udp_fd)
{
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        return -errno;
    const int fds[] = {[WAKE_TUN] = tun_fd, [WAKE_UDP] = udp_fd, [WAKE_CONTROL] = worker->wake_fd};
    for (uint32_t source = WAKE_TUN; source <= WAKE_CONTROL; source++) {
        struct epoll_event event = {.events = WATCHED, .data.u32 = source};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fds[source], &event) < 0) {
            int error = -errno;
            close(epoll_fd);
            return error;
        }
    }
    return epoll_fd;
}

int worker_init(struct worker *worker, int tun_fd, int udp_fd)
{
    worker->epoll_fd = -1;
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = worker->wake_fd < 0 ? -errno : 0;
    int tunnel_error = tunnel_init(&worker->tunnel);
    if (error == 0)
        error = tunnel_error;
    return error < 0 ? error : worker_join(worker, tun_fd, udp_fd);
}

int worker_join(struct worker *worker, int tun_fd, int udp_fd)
{
    struct tunnel_ends ends;
    int error = tunnel_probe(&ends, tun_fd, udp_fd, worker->wanted);
    if (error < 0)
        return error;
    int epoll_fd = watch_ends(worker, tun_fd, udp_fd);
    if (epoll_fd < 0)
        return epoll_fd;
    close_fd(&worker->epoll_fd);
    worker->epoll_fd = epoll_fd;
    worker->paused = false;
    tunnel_join(&worker->tunnel, &ends);
    uint64_t wakes;
    ssize_t n = read(worker->wake_fd, &wakes, sizeof wakes);
    (void)n; /* EAGAIN: there was no stop */
    /* relaxed: the thread that will read them is made after this */
    atomic_store_explicit(&worker->failure, 0, memory_order_relaxed);
    atomic_store_explicit(&worker->stop, false, memory_order_relaxed);
    return 0;
}

int worker_start(struct worker *worker)
{
    /* Python handles the signals, so the thread blocks them, except those of its own faults: were these blocked, the
     * process would end without the report of faulthandler or a sanitizer. */
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&blocked, faults[i]);
    int error = pthread_sigmask(SIG_SETMASK, &blocked, &before);
    if (error != 0)
        return -error;
    worker->past_cpu_ns += counter_read(&worker->ended_cpu_ns);
    atomic_store_explicit(&worker->ended_cpu_ns, 0, memory_order_relaxed); /* the thread is made after this */
    error = pthread_create(&worker->thread, NULL, worker_main, worker);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL); /* cannot fail: the mask is the one it has just returned */
    if (error != 0)
        return -error;
    worker->started = true;
    (void)pthread_setname_np(worker->thread, "flannel-pump"); /* for top; nothing depends on it */
    return 0;
}

void worker_stop(struct worker *worker)
{
    /* release: pairs with the acquire in must_stop */
    atomic_store_explicit(&worker->stop, true, memory_order_release);
    if (!worker->started)
        return;
    uint64_t one = 1;
    ssize_t n = write(worker->wake_fd, &one, sizeof one);
    (void)n; /* cannot fail: the counter is 0 and the descriptor ours */
    (void)pthread_join(worker->thread, NULL); /* cannot fail: the thread exists and only this function joins it */
    worker->started = false;
}

void worker_destroy(struct worker *worker)
{
    close_fd(&worker->epoll_fd);
    close_fd(&worker->wake_fd);
    tunnel_clear(&worker->tunnel);
}

uint64_t worker_cpu_ns(const struct worker *worker)
{
    clockid_t clock;
    uint64_t used = counter_read(&worker->ended_cpu_ns);
    if (used == 0 && worker->started && pthread_getcpuclockid(worker->thread, &clock) == 0)
        used = clock_ns(clock);
    if (used == 0)
        used = counter_read(&worker->ended_cpu_ns); /* again: the thread may have ended just now */
    return worker->past_cpu_ns + used;
}
