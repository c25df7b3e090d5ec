#include "outbox.h"

/* A path that refused segments is tried again after this long: a route or a device may have changed. */
#define GSO_RETRY_NS UINT64_C(10000000000)

void outbox_reset(struct outbox *outbox)
{
    outbox->first = outbox->count = outbox->headers = 0;
}

bool outbox_has_room(const struct outbox *outbox)
{
    const size_t most_messages = (SEGMENT_COUNT_MAX + UDP_SEGMENTS_MAX - 1) / UDP_SEGMENTS_MAX;
    return outbox->headers + SEGMENT_COUNT_MAX <= OUTBOX_PACKETS &&
           outbox->count + most_messages <= OUTBOX_MESSAGES;
}

uint8_t *outbox_new_header(struct outbox *outbox)
{
    return outbox->header_pool[outbox->headers++];
}

/* ---- gathering ---- */

/* The latest message for this peer, if one more packet fits into it. */
static struct message *open_message(struct outbox *outbox, const struct peer *peer, size_t pieces,
                                    size_t length)
{
    /* The number may be from an earlier batch, or of a message that has left. */
    struct message *message = &outbox->messages[peer->latest_message];
    if (peer->latest_message < outbox->first || peer->latest_message >= outbox->count || message->peer != peer)
        return NULL;
    bool fits = message->open && message->pieces == pieces && length <= message->packet_size &&
                message->packets < UDP_SEGMENTS_MAX && message->length + length <= UDP_SEND_MAX;
    return fits ? message : NULL;
}

static struct message *new_message(struct outbox *outbox, struct peer *peer, size_t pieces, size_t length)
{
    peer->latest_message = (uint16_t)outbox->count;
    struct message *message = &outbox->messages[outbox->count++];
    message->peer = peer;
    message->packet_size = length;
    message->length = 0;
    message->packets = message->sent = 0;
    message->pieces = (uint8_t)pieces;
    message->open = true;
    message->refused = false;
    return message;
}

void outbox_add(struct outbox *outbox, struct peer *peer, const struct iovec *pieces, size_t count)
{
    size_t length = 0;
    for (size_t i = 0; i < count; i++)
        length += pieces[i].iov_len;
    struct message *message = open_message(outbox, peer, count, length);
    if (message == NULL)
        message = new_message(outbox, peer, count, length);
    for (size_t i = 0; i < count; i++)
        message->iov[message->packets * count + i] = pieces[i];
    message->packets++;
    message->length += length;
    message->open = length == message->packet_size;
}

/* ---- sending ---- */

/* The bytes of one packet of a message. */
static size_t packet_length(const struct message *message, size_t index)
{
    size_t length = 0;
    for (size_t i = 0; i < message->pieces; i++)
        length += message->iov[index * message->pieces + i].iov_len;
    return length;
}

static bool leaves_segmented(const struct outbox *outbox, const struct message *message, uint64_t now_ns)
{
    return outbox->gso && message->packets > 1 && message->sent == 0 && !message->refused &&
           now_ns >= counter_read(&message->peer->plain_until_ns);
}

/* Makes send `at` of the window from `packets` packets of the message, the first of which is `index`. */
static void window_set(struct outbox *outbox, size_t at, struct message *message, size_t index,
                       size_t packets)
{
    outbox->to[at] = (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_port = htons(outbox->port),
        .sin_addr.s_addr = htonl(message->peer->address),
    };
    struct msghdr *header = &outbox->window[at].msg_hdr;
    *header = (struct msghdr){
        .msg_name = &outbox->to[at],
        .msg_namelen = sizeof outbox->to[at],
        .msg_iov = &message->iov[index * message->pieces],
        .msg_iovlen = packets * message->pieces,
    };
    udp_socket_set_segment_size(header, outbox->control[at], packets > 1 ? message->packet_size : 0);
}

/* Makes the sends of the next system call from the front of the outbox. Returns their number. */
static size_t window_fill(struct outbox *outbox, uint64_t now_ns)
{
    size_t at = 0;
    for (size_t i = outbox->first; i < outbox->count && at < OUTBOX_WINDOW; i++) {
        struct message *message = &outbox->messages[i];
        message->segmented = leaves_segmented(outbox, message, now_ns);
        if (message->segmented) {
            window_set(outbox, at++, message, 0, message->packets);
            continue;
        }
        for (size_t index = message->sent; index < message->packets && at < OUTBOX_WINDOW; index++)
            window_set(outbox, at++, message, index, 1);
    }
    return at;
}

static void count_sent(const struct outbox *outbox, struct peer *peer, size_t packets, size_t bytes)
{
    counter_add(&peer->sent_packets, packets);
    counter_add(&peer->sent_bytes, bytes);
    counter_add(&outbox->counters->udp_sent_packets, packets);
    counter_add(&outbox->counters->udp_sent_bytes, bytes);
}

static void count_lost(const struct outbox *outbox, struct peer *peer, enum drop_reason drop, size_t packets)
{
    counter_add(&outbox->counters->drops[drop], packets);
    counter_add(&peer->dropped_packets, packets);
}

/* The path to the peer refuses segments and is not tried before then; 0: it took some. */
static void set_plain_until(struct outbox *outbox, struct peer *peer, uint64_t until_ns)
{
    uint64_t before = counter_read(&peer->plain_until_ns);
    if (before == until_ns)
        return;
    /* relaxed: as counter_add */
    atomic_store_explicit(&peer->plain_until_ns, until_ns, memory_order_relaxed);
    outbox->offload_changed |= before == 0 || until_ns == 0;
}

/* The front send is done, successfully or not. */
static void advance(struct outbox *outbox, const struct message *message)
{
    if (message->segmented || message->sent == message->packets)
        outbox->first++;
}

/* The kernel took the front send. */
static void note_sent(struct outbox *outbox, uint64_t now_ns)
{
    struct message *message = &outbox->messages[outbox->first];
    if (message->segmented) {
        count_sent(outbox, message->peer, message->packets, message->length);
        counter_add(&outbox->counters->udp_segmented_sends, 1);
        set_plain_until(outbox, message->peer, 0);
    } else {
        count_sent(outbox, message->peer, 1, packet_length(message, message->sent));
        /* A single packet passes: the segments were refused, not the peer. */
        if (message->refused && message->sent == 0) {
            set_plain_until(outbox, message->peer, now_ns + GSO_RETRY_NS);
            counter_add(&outbox->counters->send_fallbacks, 1);
        }
        message->sent++;
    }
    advance(outbox, message);
}

/* The kernel refused the front send for good. Returns whether it leaves the outbox; if not, its packets are to be sent
 * one by one. */
static bool note_refused(struct outbox *outbox, int error, enum drop_reason drop)
{
    struct message *message = &outbox->messages[outbox->first];
    if (message->segmented && udp_socket_refused_segments(error)) {
        message->refused = true; /* nothing of it has left */
        return false;
    }
    count_lost(outbox, message->peer, drop, message->segmented ? message->packets : 1);
    if (!message->segmented)
        message->sent++;
    advance(outbox, message);
    return true;
}

/* Sends the window, the front of the outbox. 0 when it must be filled again; 1 or -errno as outbox_flush. */
static int window_send(struct outbox *outbox, size_t sends, int fd, uint64_t now_ns)
{
    size_t done = 0;
    bool again = false; /* the next send met EAGAIN although the socket was writable */
    while (done < sends) {
        int n = udp_socket_send_batch(fd, &outbox->window[done], sends - done);
        for (int i = 0; i < n; i++, done++)
            note_sent(outbox, now_ns);
        if (n >= 0) {
            again = false;
            continue;
        }
        enum drop_reason drop = DROP_TUN_SEND_FAILED;
        switch (udp_socket_judge_send(n, &drop)) {
        case SEND_WAIT:
            if (!udp_socket_is_writable(fd))
                return 1;
            if (!again) { /* it may have become writable just now */
                again = true;
                continue;
            }
            /* Nobody else fills the socket: the error is about this send. To wait would delay every peer. */
            __attribute__((fallthrough));
        case SEND_DROP: /* the error is about the first send only: continue with the next */
            if (!note_refused(outbox, n, drop))
                return 0;
            again = false;
            done++;
            break;
        case SEND_DEAD:
            return n;
        }
    }
    return 0;
}

int outbox_flush(struct outbox *outbox, int fd, uint64_t now_ns)
{
    int status = 0;
    while (status == 0 && !outbox_is_empty(outbox))
        status = window_send(outbox, window_fill(outbox, now_ns), fd, now_ns);
    return status;
}

void outbox_abandon(struct outbox *outbox)
{
    for (; !outbox_is_empty(outbox); outbox->first++) {
        const struct message *message = &outbox->messages[outbox->first];
        count_lost(outbox, message->peer, DROP_TUN_SEND_FAILED, (size_t)message->packets - message->sent);
    }
}
