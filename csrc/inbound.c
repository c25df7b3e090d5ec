#include "inbound.h"

#include <errno.h>

#include "offload.h"
#include "segment.h"

/* After the TUN refused a superpacket, none is tried for this long. */
#define SUPERPACKET_RETRY_NS UINT64_C(10000000000)

/* Why the packet of one datagram is dropped, or DROP_NONE and its sender. */
static enum drop_reason judge(const struct tunnel *tunnel, const uint8_t *bytes, size_t length,
                              struct refusal *outer, struct packet *packet, struct peer **sender)
{
    if (tunnel->own->check_port && outer->outer_port != tunnel->ends.port)
        return DROP_UDP_WRONG_PORT;
    enum packet_fault fault = packet_parse(packet, bytes, length);
    if (fault != PACKET_OK)
        return filter_inbound_fault(fault);
    outer->inner_source = packet->source;
    outer->inner_destination = packet->destination;
    return filter_inbound(tunnel->own, tunnel->tables->routes, tunnel->tables->peers, packet, outer->outer_source,
                          sender);
}

/* A refused datagram: if there are too many from its port or address, the kernel drops them from now on. */
static void resist_flood(struct tunnel *tunnel, enum drop_reason drop, uint32_t outer_source)
{
    if (drop == DROP_UDP_WRONG_PORT)
        outer_source = FLOOD_OF_PORTS;
    else if (!tunnel->own->check_source || peer_table_find(tunnel->tables->peers, outer_source) != NULL)
        return;
    if (flood_note(&tunnel->flood, outer_source, tunnel->now_ns))
        tunnel_set_filter(tunnel);
}

/* Decides about the packet of one datagram. Returns whether it is to be written to the TUN. */
static bool admit(struct tunnel *tunnel, const uint8_t *bytes, size_t length, const struct sockaddr_in *from,
                  struct packet *packet)
{
    struct peer *sender = NULL;
    struct refusal refusal = {.outer_source = ntohl(from->sin_addr.s_addr), .outer_port = ntohs(from->sin_port)};
    enum drop_reason drop = judge(tunnel, bytes, length, &refusal, packet, &sender);
    if (drop != DROP_NONE) {
        tunnel_count_drop(tunnel, drop);
        resist_flood(tunnel, drop, refusal.outer_source);
        refusal.reason = drop;
        if (refusal_add(&tunnel->refusals, &refusal, tunnel->now_ns))
            tunnel_signal_event(tunnel);
        return false;
    }
    if (sender != NULL) {
        counter_add(&sender->received_packets, 1);
        counter_add(&sender->received_bytes, length);
    }
    return true;
}

static void count_written(struct tunnel *tunnel, size_t packets, size_t bytes)
{
    counter_add(&tunnel->counters.tun_written_packets, packets);
    counter_add(&tunnel->counters.tun_written_bytes, bytes);
}

/* Writes the packets of a superpacket that the TUN refused, one by one. 0 or -errno. */
static int write_singly(struct tunnel *tunnel, const struct bundle *bundle)
{
    const struct coalescer *coalescer = &tunnel->buffers->coalescer;
    uint16_t index = bundle->first;
    for (size_t left = bundle->count; left > 0; left--) {
        const struct coalesced_packet *packet = &coalescer->packets[index];
        struct virtio_net_hdr vnet = {0};
        struct iovec iov[2] = {{&vnet, sizeof vnet}, {(void *)(uintptr_t)packet->bytes, packet->length}};
        int error = tun_device_write(&tunnel->ends.tun, iov, 2);
        if (tun_device_is_gone(error))
            return error;
        if (error == 0)
            count_written(tunnel, 1, packet->length);
        else
            tunnel_count_drop(tunnel, DROP_UDP_TUN_REFUSED);
        index = packet->next;
    }
    return 0;
}

/* Notes whether the TUN took or refused a superpacket of this protocol. */
static void note_superpacket(struct tunnel *tunnel, uint8_t protocol, bool refused)
{
    unsigned offload = protocol == PROTOCOL_TCP ? OFFLOAD_TSO : OFFLOAD_USO;
    /* relaxed, both: only this thread writes it; tunnel_note_offload_change makes it visible to readers */
    unsigned before = atomic_load_explicit(&tunnel->refused_offloads, memory_order_relaxed);
    unsigned after = refused ? before | offload : before & ~offload;
    if (after == before)
        return;
    atomic_store_explicit(&tunnel->refused_offloads, after, memory_order_relaxed);
    tunnel_note_offload_change(tunnel);
}

/* The TUN refused this superpacket: writes its packets, and has no more of the protocol merged for a while. */
static int fall_back_to_singles(struct tunnel *tunnel, const struct bundle *bundle)
{
    note_superpacket(tunnel, bundle->protocol, true);
    uint64_t *until = bundle->protocol == PROTOCOL_TCP ? &tunnel->tcp_single_until_ns : &tunnel->udp_single_until_ns;
    *until = tunnel->now_ns + SUPERPACKET_RETRY_NS;
    counter_add(&tunnel->counters.write_fallbacks, 1);
    return write_singly(tunnel, bundle);
}

static int write_bundle(struct tunnel *tunnel, size_t index)
{
    const struct coalescer *coalescer = &tunnel->buffers->coalescer;
    const struct bundle *bundle = &coalescer->bundles[index];
    struct virtio_net_hdr vnet;
    uint8_t header[SEGMENT_HEADER_MAX];
    struct iovec iov[COALESCE_IOVECS];
    size_t count = coalesce_build(coalescer, index, &vnet, header, iov);
    int error = tun_device_write(&tunnel->ends.tun, iov, count);
    if (tun_device_is_gone(error))
        return error;
    if (error == 0) {
        size_t bytes = (size_t)bundle->headers * bundle->count + bundle->payload;
        count_written(tunnel, bundle->count, bundle->count == 1 ? iov[1].iov_len : bytes);
        if (bundle->count > 1) {
            counter_add(&tunnel->counters.tun_written_superpackets, 1);
            note_superpacket(tunnel, bundle->protocol, false);
        }
        return 0;
    }
    if (bundle->count > 1 && tun_device_refused_superpacket(error))
        return fall_back_to_singles(tunnel, bundle);
    counter_add(&tunnel->counters.drops[DROP_UDP_TUN_REFUSED], bundle->count);
    return 0;
}

/* Writes the batch to the TUN and starts an empty one. 0 or -errno. */
static int write_batch(struct tunnel *tunnel)
{
    struct coalescer *coalescer = &tunnel->buffers->coalescer;
    int error = 0;
    for (size_t i = 0; i < coalescer->bundle_count && error == 0; i++)
        error = write_bundle(tunnel, i);
    coalesce_reset(coalescer);
    return error;
}

/* Takes one received message: one datagram, or several of one size one after another. 0 or -errno. */
static int take_inbound(struct tunnel *tunnel, const struct mmsghdr *message, const uint8_t *bytes,
                        const struct sockaddr_in *from)
{
    size_t size = udp_socket_datagram_size(message), left = message->msg_len;
    if (message->msg_hdr.msg_flags & MSG_TRUNC) {
        counter_add(&tunnel->counters.udp_received_packets, 1);
        tunnel_count_drop(tunnel, DROP_UDP_TRUNCATED);
        return 0;
    }
    if (size < left)
        counter_add(&tunnel->counters.udp_merged_receives, 1);
    do { /* at least once: an empty datagram is counted, too */
        struct packet packet;
        size_t length = left < size ? left : size;
        counter_add(&tunnel->counters.udp_received_packets, 1);
        counter_add(&tunnel->counters.udp_received_bytes, length);
        if (admit(tunnel, bytes, length, from, &packet) &&
            !coalesce_add(&tunnel->buffers->coalescer, &packet)) {
            int error = write_batch(tunnel);
            if (error < 0)
                return error;
            (void)coalesce_add(&tunnel->buffers->coalescer, &packet); /* it is empty now, so there is room */
        }
        bytes += length;
        left -= length;
    } while (left > 0);
    return 0;
}

int inbound_serve(struct tunnel *tunnel, size_t limit)
{
    struct inbox *box = &tunnel->buffers->inbox;
    struct coalescer *coalescer = &tunnel->buffers->coalescer;
    if (limit > box->size)
        limit = box->size;
    if (tunnel->now_ns >= tunnel->filter_until_ns)
        tunnel_set_filter(tunnel);
    for (size_t i = 0; i < limit; i++) { /* the last receive has overwritten these */
        box->headers[i].msg_hdr.msg_namelen = sizeof box->from[i];
        box->headers[i].msg_hdr.msg_controllen = sizeof box->control[i];
    }
    int n = udp_socket_receive_batch(tunnel->ends.udp_fd, box->headers, limit);
    if (n < 0) {
        if (udp_socket_is_dead(n))
            return n;
        if (n != -EAGAIN)
            counter_add(&tunnel->counters.receive_errors, 1);
        return 0;
    }
    coalescer->tcp = tunnel->ends.offloads & OFFLOAD_TSO && tunnel->now_ns >= tunnel->tcp_single_until_ns;
    coalescer->udp = tunnel->ends.offloads & OFFLOAD_USO && tunnel->now_ns >= tunnel->udp_single_until_ns;
    for (int i = 0; i < n; i++) {
        int error = take_inbound(tunnel, &box->headers[i], tunnel->buffers->inbound[i], &box->from[i]);
        if (error < 0)
            return error;
    }
    return write_batch(tunnel);
}
