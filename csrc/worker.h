/* worker.h - the thread that moves packets through a tunnel: one TUN queue, one UDP socket, one epoll set.
 *
 * tunpump.c sets a worker up, starts and stops it; everything in between happens in worker.c.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tunnel.h"

struct worker {
    struct tunnel tunnel;

    /* fixed before the thread starts */
    uint64_t busy_poll_ns; /* polls this long, at most, before it sleeps */
    unsigned wanted;       /* enum offload: those to use where the ends have them */
    int epoll_fd;
    int wake_fd; /* eventfd: a stop */
    pthread_t thread;
    bool started;

    /* shared with the controlling thread */
    atomic_bool stop;
    atomic_int failure;   /* the -errno that ended the worker, else 0 */
    counter ended_cpu_ns; /* CPU time of the thread when it ended, 0 until then */
    uint64_t past_cpu_ns; /* of the threads before it (the controlling thread's own) */

    /* the worker's own */
    uint64_t moved_ns;    /* CLOCK_MONOTONIC at the last turn that moved packets */
    unsigned poll_streak; /* turns for which busy polling would have paid */
    bool paused;          /* TUN reads wait for the socket */
};

/* Probes the offloads, sets up the epoll set, the eventfds and the buffers. 0 or -errno, and then worker_destroy. */
int worker_init(struct worker *worker, int tun_fd, int udp_fd);

/* Joins a worker whose thread is stopped or has ended to other ends, ready to start. What waited for the old socket is
 * lost; the counters stay. 0 or -errno; after an error it has its old ends. */
int worker_join(struct worker *worker, int tun_fd, int udp_fd);

/* Starts the thread, with all signals blocked. 0 or -errno. */
int worker_start(struct worker *worker);

/* Stops the thread and waits for it, if there is one. */
void worker_stop(struct worker *worker);

/* Frees what worker_init made; the thread must be stopped. */
void worker_destroy(struct worker *worker);

/* The CPU time of all its threads. */
uint64_t worker_cpu_ns(const struct worker *worker);
