/* worker_turns.h - what the worker's two directions share: one turn of each, and the buffers they work in.
 *
 * outbound.c serves the TUN, inbound.c the socket, worker.c calls one after the other. Only these three include
 * this.
 */
#ifndef FLANNEL_UDP_WORKER_TURNS_H
#define FLANNEL_UDP_WORKER_TURNS_H

#include "coalesce.h"
#include "outbox.h"
#include "udp_socket.h"
#include "worker.h"

enum {
    /* One turn of one direction serves at most this much, so the other one, a stop or a table change waits no
     * longer than that. Four superpackets: their runs join, where one alone leaves in a long send and a short one. */
    TURN_PACKETS = 64,
    TURN_BYTES = 256 << 10,
    /* A superpacket leaves its sender in two sends: a batch of several receives joins its halves again. */
    TURN_MERGED_RECEIVES = 16,

    SLOT_SIZE = PACKET_MAX + 1,           /* one byte more than any packet, so a longer datagram shows as truncated */
    INBOUND_STRIDE = SLOT_SIZE + 17 * 64, /* an odd number of cache lines: slots do not share cache sets */
};

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

/* Reads at most `most` packets (1..TURN_PACKETS) from the TUN into the empty outbox, and sends them. 0; 1 when the
 * socket is full and the rest waits in the outbox; -errno when the worker cannot go on. */
int outbound_serve(struct worker *worker, size_t most);

/* Sends what waits in the outbox. As above. */
int outbound_flush(struct worker *worker);

/* Counts what waits in the outbox as lost: nobody will send it. */
void outbound_abandon(struct worker *worker);

/* Receives at most `most` datagrams, or as many receives of merged ones, and writes them to the TUN. 0 or -errno, as
 * above. */
int inbound_serve(struct worker *worker, size_t most);

/* Wakes who waits for the worker's event_fd. */
void worker_signal_event(const struct worker *worker);

/* Tells that a use of an offload is refused from now on, or no longer. */
void worker_note_offload_change(struct worker *worker);

static inline void count_drop(struct worker *worker, enum drop_reason drop)
{
    counter_add(&worker->counters.drops[drop], 1);
}

#endif
