#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "offload.h"

int tunnel_init(struct tunnel *tunnel)
{
    tunnel->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tunnel->event_fd < 0)
        return -errno;
    tunnel->buffers = calloc(1, sizeof *tunnel->buffers);
    return tunnel->buffers == NULL ? -ENOMEM : 0;
}

void tunnel_clear(struct tunnel *tunnel)
{
    if (tunnel->event_fd >= 0)
        close(tunnel->event_fd);
    tunnel->event_fd = -1;
    free(tunnel->buffers);
    tunnel->buffers = NULL;
}

int tunnel_probe(struct tunnel_ends *ends, int tun_fd, int udp_fd, unsigned wanted)
{
    struct sockaddr_in local = {0};
    socklen_t size = sizeof local;
    if (getsockname(udp_fd, (struct sockaddr *)&local, &size) < 0)
        return -errno;
    *ends = (struct tunnel_ends){.udp_fd = udp_fd, .port = ntohs(local.sin_port)};
    int error = tun_device_attach(&ends->tun, tun_fd, wanted);
    if (error == 0)
        ends->offloads = ends->tun.offloads | udp_socket_attach(udp_fd, wanted);
    return error;
}

static void prepare_inbox(struct tunnel *tunnel)
{
    struct inbox *inbox = &tunnel->buffers->inbox;
    inbox->size = tunnel->ends.offloads & OFFLOAD_UDP_GRO ? TURN_MERGED_RECEIVES : TURN_PACKETS;
    for (size_t i = 0; i < inbox->size; i++) {
        inbox->iov[i] = (struct iovec){.iov_base = tunnel->buffers->inbound[i], .iov_len = SLOT_SIZE};
        inbox->headers[i].msg_hdr = (struct msghdr){
            .msg_name = &inbox->from[i],
            .msg_iov = &inbox->iov[i],
            .msg_iovlen = 1,
            .msg_control = inbox->control[i],
        };
    }
}

void tunnel_join(struct tunnel *tunnel, const struct tunnel_ends *ends)
{
    struct outbox *outbox = &tunnel->buffers->outbox;
    tunnel->ends = *ends;
    prepare_inbox(tunnel);
    coalesce_reset(&tunnel->buffers->coalescer);
    outbox_reset(outbox);
    outbox->counters = &tunnel->counters;
    outbox->port = ends->port;
    outbox->gso = (ends->offloads & OFFLOAD_UDP_GSO) != 0;
    tunnel->tcp_single_until_ns = tunnel->udp_single_until_ns = 0;
    tunnel->flood = (struct flood){0};
    tunnel_set_filter(tunnel); /* none: the last process may have left one */
    /* relaxed: the thread that will read it is made after this */
    if (atomic_exchange_explicit(&tunnel->refused_offloads, 0, memory_order_relaxed) != 0)
        tunnel_note_offload_change(tunnel);
}

void tunnel_set_filter(struct tunnel *tunnel)
{
    struct flood_filter filter;
    flood_make_filter(&tunnel->flood, &filter, tunnel->now_ns);
    bool drops = udp_socket_set_filter(tunnel->ends.udp_fd, tunnel->ends.port, &filter);
    tunnel->filter_until_ns = drops ? tunnel->now_ns + FLOOD_HOLD_NS : UINT64_MAX;
    if (drops) /* relaxed: a reader that comes too early attributes a few drops to a full buffer */
        atomic_store_explicit(&tunnel->had_filter, true, memory_order_relaxed);
}

void tunnel_signal_event(const struct tunnel *tunnel)
{
    uint64_t one = 1;
    ssize_t n = write(tunnel->event_fd, &one, sizeof one);
    (void)n; /* EAGAIN: the counter is full, so the reader is awake already */
}

void tunnel_note_offload_change(struct tunnel *tunnel)
{
    /* release: whoever sees the count sees what has changed */
    atomic_fetch_add_explicit(&tunnel->offload_changes, 1, memory_order_release);
    tunnel_signal_event(tunnel);
}
