#include "outbound.h"

#include <errno.h>

#include "icmp.h"
#include "segment.h"

static int answer_unroutable(struct tunnel *tunnel, const struct packet *packet)
{
    uint8_t reply[ICMP_REPLY_MAX];
    if (!icmp_may_answer(packet) || !icmp_allow(&tunnel->icmp_limits, packet->source, tunnel->now_ns)) {
        counter_add(&tunnel->counters.icmp_suppressed, 1);
        return 0;
    }
    struct virtio_net_hdr vnet = {0};
    size_t length = icmp_net_unreachable(reply, tunnel->tun_address, packet);
    struct iovec iov[2] = {{&vnet, sizeof vnet}, {reply, length}};
    int error = tun_device_write(&tunnel->ends.tun, iov, 2);
    counter_add(error == 0 ? &tunnel->counters.icmp_replies : &tunnel->counters.icmp_suppressed, 1);
    return tun_device_is_gone(error) ? error : 0;
}

/* Adds the segments of a superpacket to the outbox. 0 or -EINVAL. */
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

/* Adds one packet or superpacket to the outbox, with complete checksums. 0 or -EINVAL. */
static int add_outbound(struct tunnel *tunnel, uint8_t *bytes, const struct packet *packet,
                        const struct virtio_net_hdr *vnet, struct peer *peer)
{
    struct outbox *outbox = &tunnel->buffers->outbox;
    if (vnet->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        counter_add(&tunnel->counters.tun_read_superpackets, 1);
        return add_segments(outbox, packet, vnet, peer);
    }
    if (vnet->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        int error = segment_complete_checksum(bytes, packet, vnet);
        if (error < 0)
            return error;
    }
    struct iovec whole = {bytes, packet->length};
    outbox_add(outbox, peer, &whole, 1);
    return 0;
}

/* Adds one packet read from the TUN to the outbox, or drops and counts it. 0 or -errno. */
static int take_outbound(struct tunnel *tunnel, uint8_t *bytes, size_t length,
                         const struct virtio_net_hdr *vnet)
{
    struct packet packet;
    struct peer *peer;
    enum packet_fault fault = packet_parse(&packet, bytes, length);
    if (fault != PACKET_OK) {
        tunnel_count_drop(tunnel, fault == PACKET_IPV6 ? DROP_TUN_IPV6 : DROP_TUN_MALFORMED);
        return 0;
    }
    enum drop_reason drop = filter_outbound(tunnel->own, tunnel->tables->routes, tunnel->tables->peers, &packet, &peer);
    if (drop == DROP_NONE && add_outbound(tunnel, bytes, &packet, vnet, peer) < 0)
        drop = DROP_TUN_MALFORMED;
    if (drop == DROP_NONE)
        return 0;
    tunnel_count_drop(tunnel, drop);
    return drop == DROP_TUN_NO_ROUTE ? answer_unroutable(tunnel, &packet) : 0;
}

/* Reads at most `limit` packets into the empty outbox. 0 or -errno. */
static int fill_outbox(struct tunnel *tunnel, size_t limit)
{
    struct outbox *outbox = &tunnel->buffers->outbox;
    outbox_reset(outbox);
    size_t used = 0;
    for (size_t count = 0; count < limit && used < TURN_BYTES && outbox_has_room(outbox); count++) {
        struct virtio_net_hdr vnet;
        uint8_t *slot = tunnel->buffers->outbound + used;
        ssize_t n = tun_device_read(&tunnel->ends.tun, &vnet, slot, SLOT_SIZE);
        if (n == -EAGAIN)
            return 0;
        if (n < 0 && !tun_device_lost_packet((int)n))
            return (int)n;
        counter_add(&tunnel->counters.tun_read_packets, 1);
        if (n < 0) {
            tunnel_count_drop(tunnel, DROP_TUN_READ_FAILED);
            continue;
        }
        size_t length = (size_t)n;
        counter_add(&tunnel->counters.tun_read_bytes, length);
        int error = take_outbound(tunnel, slot, length, &vnet);
        if (error < 0)
            return error;
        used += length;
    }
    return 0;
}

int outbound_flush(struct tunnel *tunnel)
{
    struct outbox *outbox = &tunnel->buffers->outbox;
    int status = outbox_flush(outbox, tunnel->ends.udp_fd, tunnel->now_ns);
    if (outbox->offload_changed)
        tunnel_note_offload_change(tunnel);
    outbox->offload_changed = false;
    return status;
}

int outbound_serve(struct tunnel *tunnel, size_t limit)
{
    int error = fill_outbox(tunnel, limit);
    /* What was read before an error is still sent. */
    int flushed = outbound_flush(tunnel);
    return error < 0 ? error : flushed;
}
