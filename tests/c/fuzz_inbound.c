/* Any receives, merged, cut short or failed, before a TUN that refuses some writes: every datagram that a plain reading
 * of the rules admits is written once and in its flow's order, or counted as dropped.
 *
 * Input: one byte for offloads and checks; records of struct arrival from its front, each of which is one received
 * message; from its end fates, one byte for each receive and each write, until both meet.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "faults.h"
#include "inbound.h"
#include "offload.h"
#include "packets.h"
#include "transport.h"

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifdef UNDER_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

enum { TUN = 7, SOCKET = 8, PORT = 8285, FLOWS = 16, PIECES = 512, MOST = TURN_PACKETS * PIECES, RETRY_SECONDS = 10 };

/* The first byte of the input. */
enum { CHECK_SOURCE = 1, CHECK_PORT = 2, TSO = 4, USO = 8, GRO = 16, NO_VNET = 32 };

struct arrival {
    uint8_t outer;   /* who sent it; WRONG_PORT: from another port */
    uint8_t control; /* what says where its datagrams end */
    uint8_t flow, count, quirk, detail, size;
    uint8_t cut;     /* CUT_SHORT: longer than the buffer */
};

enum { WRONG_PORT = 0x80, CUT_SHORT = 0xf0 };
enum control { NOTHING, SIZE, SIZE_AND_OTHER, SHORT_CONTROL, OTHER_LEVEL, NEGATIVE, ODD_SIZE, LARGE_SIZE, CONTROLS };
enum quirk { NONE, FLIP, FLIP_AND_FINISH, SHORT_LAST, FLAGS, DONT_FRAGMENT, LARGE, PATTERN, QUIRKS };

static struct filter_identity own;
static struct tables tables;
static struct tunnel tunnel;
static struct {
    const uint8_t *begin, *end;
} input;

/* What the tunnel owes the TUN: the packets of each flow in their order. */
struct owed {
    const uint8_t *bytes;
    size_t length, next; /* index + 1 of the flow's next packet, 0 for none */
};

static struct owed owed[MOST];
static struct {
    uint8_t key[13]; /* addresses, protocol, ports */
    size_t first, last;
} flows[MOST];
static size_t owed_count, flow_count;

static struct {
    uint64_t datagrams, bytes, merged, receive_errors; /* as the socket gave them */
    uint64_t written, superpackets;                    /* as the TUN took them */
    uint64_t refused;                                  /* by the TUN, for good */
} seen;
static int gone;                                 /* the errno of a TUN that was deleted */
static uint64_t single_until_ns[2];              /* by protocol, TCP and UDP: no superpacket is tried before then */

/* ---- the rules, read plainly ---- */

/* Addresses as numbers: parsing text for every packet would take most of the time. */
enum { OURS = 0xac1e0001, HOST_6 = 0xac1e0006, HOST_7 = 0xac1e0007, NOBODY = 0xac1e0042, OUR_LAN = 0xc0a80102 };

static bool within(uint32_t inner, unsigned long prefix, unsigned length)
{
    return inner >> (32 - length) == prefix >> (32 - length);
}

static bool is_admitted(const uint8_t *bytes, size_t length, const struct sockaddr_in *from)
{
    uint32_t outer = ntohl(from->sin_addr.s_addr);
    if (own.check_port && ntohs(from->sin_port) != PORT)
        return false;
    if (length < 20 || bytes[0] >> 4 != 4 || (bytes[0] & 15) < 5 || (size_t)(bytes[0] & 15) * 4 > length ||
        read_u16(bytes + 2) != length)
        return false;
    uint32_t source = read_u32(bytes + 12), destination = read_u32(bytes + 16);
    if (within(source, 0x00000000, 8) || within(source, 0x7f000000, 8) || within(source, 0xe0000000, 4) ||
        source == UINT32_MAX || source == OURS || source == OUR_LAN ||
        within(source, 0x0a010500, 24) || !within(destination, 0x0a010500, 24))
        return false;
    if (!own.check_source)
        return true;
    if (outer == HOST_6)
        return !within(source, 0x0a010000, 16) || within(source, 0x0a010600, 24);
    return outer == HOST_7 && (!within(source, 0x0a010000, 16) || within(source, 0x0a010700, 24));
}

/* ---- what is owed ---- */

static void key_of(uint8_t key[13], const uint8_t *bytes, size_t length)
{
    size_t header = (size_t)(bytes[0] & 15) * 4;
    memset(key, 0, 13);
    memcpy(key, bytes + 12, 8);
    key[8] = bytes[9];
    if ((read_u16(bytes + 6) & 0x3fff) == 0 && length >= header + 4)
        memcpy(key + 9, bytes + header, 4);
}

static size_t find_flow(const uint8_t *bytes, size_t length)
{
    static size_t latest;
    uint8_t key[13];
    key_of(key, bytes, length);
    if (latest < flow_count && memcmp(flows[latest].key, key, sizeof key) == 0)
        return latest;
    for (latest = 0; latest < flow_count && memcmp(flows[latest].key, key, sizeof key) != 0;)
        latest++;
    if (latest == flow_count) {
        memcpy(flows[latest].key, key, sizeof key);
        flows[latest].first = flows[latest].last = 0;
        flow_count++;
    }
    return latest;
}

static void owe(const uint8_t *bytes, size_t length)
{
    size_t flow = find_flow(bytes, length);
    CHECK(owed_count < MOST);
    owed[owed_count++] = (struct owed){bytes, length, 0};
    if (flows[flow].first == 0)
        flows[flow].first = owed_count;
    else
        owed[flows[flow].last - 1].next = owed_count;
    flows[flow].last = owed_count;
}

/* The packet is the next one that its flow is owed, the id aside with DF, where it means nothing (RFC 6864). It is
 * settled, or still owed. */
static void check_owed(uint8_t *bytes, size_t length, bool settled)
{
    size_t flow = find_flow(bytes, length);
    CHECK(flows[flow].first != 0);
    const struct owed *next = &owed[flows[flow].first - 1];
    CHECK_EQ(length, next->length);
    if (read_u16(bytes + IPV4_FRAGMENT) & IPV4_DONT_FRAGMENT) {
        memcpy(bytes + IPV4_ID, next->bytes + IPV4_ID, 2);
        memcpy(bytes + IPV4_CHECKSUM, next->bytes + IPV4_CHECKSUM, 2); /* checked before, if it was made anew */
    }
    CHECK(memcmp(bytes, next->bytes, length) == 0);
    if (settled)
        flows[flow].first = next->next;
}

/* ---- the TUN ---- */

static uint8_t next_fate(void)
{
    return input.begin == input.end ? 0 : *--input.end;
}

/* The packets of a superpacket. Their number. */
static size_t check_superpacket(const uint8_t *bytes, size_t length, const struct virtio_net_hdr *vnet, bool settled)
{
    static uint8_t segment[PACKET_MAX];
    struct packet packet;
    struct segmenter cut;
    bool udp = bytes[IPV4_PROTOCOL] == PROTOCOL_UDP;
    CHECK_EQ(vnet->flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
    CHECK(tunnel.ends.offloads & (udp ? OFFLOAD_USO : OFFLOAD_TSO));
    CHECK(tunnel.now_ns >= single_until_ns[udp]);
    CHECK_EQ(packet_parse(&packet, bytes, length), PACKET_OK);
    CHECK_EQ(segment_begin(&cut, &packet, vnet), 0);
    CHECK(cut.count > 1 && cut.count <= COALESCE_SEGMENTS);
    for (size_t i = 0; i < cut.count; i++) {
        struct iovec payload;
        segment_make(&cut, i, segment, &payload);
        CHECK_EQ(plain_checksum(segment, cut.ip_header), 0);
        memcpy(segment + cut.headers, payload.iov_base, payload.iov_len);
        if (settled) /* what is settled moves the flow on */
            check_owed(segment, cut.headers + payload.iov_len, true);
        else if (i == 0)
            check_owed(segment, cut.headers + payload.iov_len, false);
    }
    return cut.count;
}

static int error_of(uint8_t fate)
{
    static const int errors[] = {EINTR, EINVAL, E2BIG, EMSGSIZE, EIO, EAGAIN, ENOMEM, EINVAL, EINVAL, EBADFD};
    return fate < 128 ? 0 : errors[fate % (sizeof errors / sizeof *errors)];
}

/* As writev(2) on a TUN device. */
static ssize_t tun_write(int fd, const struct iovec *iov, int count)
{
    static uint8_t bytes[PACKET_MAX];
    struct virtio_net_hdr vnet = {0};
    size_t length = 0;
    CHECK(fd == TUN && count >= 1 && gone == 0);
    if (tunnel.ends.tun.vnet_header) {
        CHECK_EQ(iov->iov_len, sizeof vnet);
        memcpy(&vnet, iov->iov_base, sizeof vnet);
        iov++;
        count--;
    }
    for (; count > 0; count--, length += iov++->iov_len) {
        CHECK(length + iov->iov_len <= PACKET_MAX);
        memcpy(bytes + length, iov->iov_base, iov->iov_len);
    }
    bool whole = vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    int error = error_of(next_fate());
    bool singly = whole && (error == EINVAL || error == E2BIG || error == EMSGSIZE);
    bool settled = error != EINTR && !singly;
    size_t packets = 1;
    if (whole)
        packets = check_superpacket(bytes, length, &vnet, settled);
    else
        check_owed(bytes, length, settled);
    if (error == 0) {
        seen.written += packets;
        seen.superpackets += whole;
        return (ssize_t)length;
    }
    if (singly) /* from the next receive on: what has been merged already is still tried */
        single_until_ns[bytes[IPV4_PROTOCOL] == PROTOCOL_UDP] = tunnel.now_ns;
    else if (error == EBADFD)
        gone = EBADFD;
    else if (error != EINTR)
        seen.refused += packets;
    errno = error;
    return -1;
}

/* ---- the socket ---- */

static struct flow {
    uint32_t sequence;
    uint16_t id;
} senders[FLOWS];

/* Writes the flow's next packet: even flows are TCP. Its length. */
static size_t make_packet(uint8_t *bytes, const struct arrival *arrival, bool last, bool odd)
{
    static const uint32_t sources[] = {0x0a010602, 0x0a010602, 0x0a010702, 0xc0a80909};
    enum quirk quirk = (enum quirk)(arrival->quirk % QUIRKS);
    struct flow *flow = &senders[arrival->flow % FLOWS];
    bool tcp = arrival->flow % 2 == 0;
    size_t header = tcp ? TCP_MIN_HEADER : UDP_HEADER, payload = 1 + (size_t)arrival->size;
    payload = quirk == LARGE ? payload * 100 : quirk == SHORT_LAST && last ? 1 + payload / 2 : payload;
    size_t length = packet_build(bytes, &(struct packet_form){.source = sources[arrival->flow / 2 % 4],
                                                              .destination = 0x0a010502,
                                                              .protocol = tcp ? PROTOCOL_TCP : PROTOCOL_UDP,
                                                              .payload_length = header + payload,
                                                              .fragment = quirk == DONT_FRAGMENT ? 0x4000 : 0});
    uint8_t *transport = bytes + 20;
    write_u16(bytes + IPV4_ID, flow->id++);
    write_u16(transport, arrival->flow);
    if (tcp) {
        write_u32(transport + TCP_SEQUENCE, flow->sequence);
        transport[TCP_OFFSET] = 5 << 4;
        transport[TCP_FLAGS] = quirk == FLAGS && odd ? arrival->detail : TCP_FLAG_ACK;
    } else {
        write_u16(transport + UDP_LENGTH, (uint16_t)(header + payload));
    }
    memset(transport + header, (int)flow->sequence, payload);
    flow->sequence += (uint32_t)payload;
    uint8_t *flipped = bytes + arrival->detail % length;
    if (quirk == FLIP_AND_FINISH && odd)
        *flipped ^= 1;
    if ((bytes[0] & 15) == 5)
        packet_finish(bytes, length);
    if (quirk == FLIP && odd)
        *flipped ^= (uint8_t)(arrival->size | 1);
    return length;
}

/* Writes the datagrams of one message. *size is that of the first, the result that of all. */
static size_t fill_slot(uint8_t *slot, const struct arrival *arrival, size_t *size)
{
    static uint8_t packet[PACKET_MAX];
    size_t length = 0, count = 1 + (size_t)arrival->count * 2;
    if (arrival->quirk % QUIRKS == PATTERN) { /* whatever the record holds, again and again */
        for (; length < count && arrival->detail != 0; length++)
            slot[length] = ((const uint8_t *)arrival)[length % sizeof *arrival];
        *size = length;
        return length;
    }
    for (size_t i = 0; i < count; i++) {
        size_t added = make_packet(packet, arrival, i + 1 == count, i == arrival->detail);
        if (length + added > SLOT_SIZE)
            break;
        memcpy(slot + length, packet, added);
        if (i == 0)
            *size = added;
        length += added;
    }
    return length;
}

static void put_control(struct msghdr *message, int level, size_t length, int value)
{
    struct cmsghdr *header = (struct cmsghdr *)((uint8_t *)message->msg_control + message->msg_controllen);
    header->cmsg_level = level;
    header->cmsg_type = 104; /* UDP_GRO */
    header->cmsg_len = length;
    memcpy(CMSG_DATA(header), &value, sizeof value);
    message->msg_controllen += CMSG_SPACE(sizeof value);
}

/* Says where the datagrams end, or something else. Returns the size of each that results. */
static size_t say_size(struct msghdr *message, const struct arrival *arrival, size_t size, size_t length)
{
    enum control control = (enum control)(arrival->control % CONTROLS);
    CHECK_EQ(message->msg_controllen, UDP_CONTROL_SIZE);
    message->msg_controllen = 0;
    if (control == NOTHING)
        return length;
    if (control == ODD_SIZE)
        size = 1 + arrival->detail + length / PIECES;
    if (control == LARGE_SIZE)
        size = length + arrival->detail;
    if (control == NEGATIVE)
        size = (size_t)-(ssize_t)arrival->detail;
    if (control == SIZE_AND_OTHER || control == OTHER_LEVEL)
        put_control(message, SOL_SOCKET, CMSG_LEN(sizeof(int)), (int)size - 1);
    if (control != OTHER_LEVEL)
        put_control(message, IPPROTO_UDP, CMSG_LEN(control == SHORT_CONTROL ? 2 : sizeof(int)), (int)size);
    bool means_nothing = control == SHORT_CONTROL || control == OTHER_LEVEL || control == NEGATIVE || size == 0;
    return means_nothing || size > length ? length : size;
}

/* Notes the datagrams of a message, which `size` divides. */
static void expect(const uint8_t *slot, size_t length, size_t size, const struct sockaddr_in *from)
{
    seen.merged += size < length;
    seen.bytes += length;
    do {
        size_t piece = length < size ? length : size;
        seen.datagrams++;
        if (is_admitted(slot, piece, from))
            owe(slot, piece);
        slot += piece;
        length -= piece;
    } while (length > 0);
}

static void receive(struct mmsghdr *message, const struct arrival *arrival)
{
    static const uint32_t outer[] = {HOST_6, HOST_7, NOBODY, OURS};
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_port = htons(arrival->outer & WRONG_PORT ? PORT + 1 : PORT),
                               .sin_addr.s_addr = htonl(outer[arrival->outer % 4])};
    uint8_t *slot = message->msg_hdr.msg_iov->iov_base;
    size_t size = 0;
    CHECK(message->msg_hdr.msg_iovlen == 1 && message->msg_hdr.msg_iov->iov_len == SLOT_SIZE);
    CHECK_EQ(message->msg_hdr.msg_namelen, sizeof from);
    memcpy(message->msg_hdr.msg_name, &from, sizeof from);
    ASAN_UNPOISON_MEMORY_REGION(slot, INBOUND_STRIDE);
    size_t length = fill_slot(slot, arrival, &size);
    ASAN_POISON_MEMORY_REGION(slot + length, INBOUND_STRIDE - length);
    message->msg_len = (unsigned)length;
    size = say_size(&message->msg_hdr, arrival, size, length);
    message->msg_hdr.msg_flags = arrival->cut >= CUT_SHORT ? MSG_TRUNC : 0;
    if (arrival->cut >= CUT_SHORT)
        seen.datagrams++;
    else
        expect(slot, length, size, &from);
}

/* As recvmmsg(2): some messages, or an error. */
static int socket_receive(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    static const int errors[] = {EINTR, ECONNREFUSED, ENOMEM, EAGAIN, EINTR, EHOSTUNREACH, EIO, EBADF};
    CHECK(fd == SOCKET && flags == MSG_DONTWAIT && count > 0 && count <= TURN_PACKETS);
    uint8_t fate = next_fate();
    if (fate >= 240) {
        errno = errors[fate % 8];
        seen.receive_errors += errno != EINTR && errno != EAGAIN && errno != EBADF;
        return -1;
    }
    unsigned n = 0;
    for (struct arrival arrival; n <= fate && n < count; n++) {
        if ((size_t)(input.end - input.begin) < sizeof arrival)
            break;
        memcpy(&arrival, input.begin, sizeof arrival);
        input.begin += sizeof arrival;
        receive(&batch[n], &arrival);
    }
    errno = EAGAIN;
    return n == 0 ? -1 : (int)n;
}

/* ---- libFuzzer ---- */

/* The i-th message of a seed. Every eighth seed has enough small packets to fill a batch; every third message has a
 * quirk, every fourth a control message of some kind. */
static struct arrival seed_arrival(unsigned seed, unsigned i)
{
    bool small = seed % 8 == 7;
    struct arrival arrival = {.control = SIZE, .flow = (uint8_t)(i % 2), .detail = (uint8_t)(i + seed)};
    arrival.count = (uint8_t)(small ? 255 : 5 + seed);
    arrival.size = (uint8_t)(small ? 1 : 100 + seed);
    if (i % 3 == 2)
        arrival.quirk = (uint8_t)seed;
    if (i % 4 == 3)
        arrival.control = (uint8_t)seed;
    if (i % 7 == 6)
        arrival.outer = (uint8_t)(seed % 5 == 4 ? WRONG_PORT : seed);
    if (i % 11 == 10)
        arrival.cut = CUT_SHORT;
    return arrival;
}

/* A TUN that is lost: while a batch is full, at the first write, and after it has refused a superpacket. */
static void write_losses(const char *directory)
{
    enum { ARRIVALS = 4, MANY = 40, REFUSED = 131, LOST = 129 };
    static const uint8_t fates[][4] = {{MANY, MANY, LOST}, {MANY, MANY, REFUSED, LOST}, {1, 1, REFUSED, LOST}};
    CHECK(error_of(REFUSED) == EINVAL && error_of(LOST) == EBADFD);
    for (size_t seed = 0; seed < sizeof fates / sizeof *fates; seed++) {
        uint8_t bytes[1 + ARRIVALS * sizeof(struct arrival) + sizeof *fates] = {TSO | USO | GRO};
        for (size_t i = 0; i < ARRIVALS; i++) {
            struct arrival arrival = {.control = SIZE, .count = 255, .flow = (uint8_t)i, .size = 1};
            memcpy(bytes + 1 + i * sizeof arrival, &arrival, sizeof arrival);
        }
        for (size_t i = 0; i < sizeof *fates; i++)
            bytes[sizeof bytes - 1 - i] = fates[seed][i];
        corpus_write(directory, bytes, sizeof bytes);
    }
}

/* More datagrams from a wrong port than the socket is to pass on, then some after a while. */
static void write_flood(const char *directory)
{
    enum { ARRIVALS = 6, MANY = 40, SECONDS_LATER = 0xc0 };
    static const uint8_t fates[] = {MANY, 3, SECONDS_LATER, MANY};
    uint8_t bytes[1 + ARRIVALS * sizeof(struct arrival) + sizeof fates] = {CHECK_SOURCE | CHECK_PORT | GRO};
    for (size_t i = 0; i < ARRIVALS; i++) {
        struct arrival arrival = {.outer = WRONG_PORT, .control = SIZE, .count = 255, .size = 1};
        memcpy(bytes + 1 + i * sizeof arrival, &arrival, sizeof arrival);
    }
    for (size_t i = 0; i < sizeof fates; i++)
        bytes[sizeof bytes - 1 - i] = fates[i];
    corpus_write(directory, bytes, sizeof bytes);
}

static void write_seeds(const char *directory)
{
    enum { ARRIVALS = 20, FATES = 30, EVERYTHING = CHECK_SOURCE | CHECK_PORT | TSO | USO | GRO };
    write_losses(directory);
    write_flood(directory);
    for (unsigned seed = 0; seed < 40; seed++) {
        uint8_t bytes[1 + ARRIVALS * sizeof(struct arrival) + FATES] = {0};
        bytes[0] = (uint8_t)(seed % 4 == 3 ? seed : EVERYTHING);
        for (unsigned i = 0; i < ARRIVALS; i++) {
            struct arrival arrival = seed_arrival(seed, i);
            memcpy(bytes + 1 + i * sizeof arrival, &arrival, sizeof arrival);
        }
        for (unsigned i = 0; i < FATES; i++) /* with every third seed the TUN refuses */
            bytes[sizeof bytes - 1 - i] = (uint8_t)(i % 4 == 3 && seed % 3 == 0 ? 128 + seed : 40);
        corpus_write(directory, bytes, sizeof bytes);
    }
}

static void lease(const char *subnet, const char *public_ip)
{
    uint32_t slot, previous;
    CHECK_EQ(peer_table_acquire(tables.peers, address(public_ip), &slot), 0);
    CHECK_EQ(route_table_insert(tables.routes, address(subnet), 24, slot, &previous), 0);
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    uint32_t previous;
    CHECK_EQ(tables_init(&tables), 0);
    CHECK_EQ(route_table_insert(tables.addresses, address("192.168.1.2"), 32, 0, &previous), 0);
    lease("10.1.6.0", "172.30.0.6");
    lease("10.1.7.0", "172.30.0.7");
    CHECK_EQ(tunnel_init(&tunnel), 0);
    faults_replace_receive(socket_receive);
    faults_replace_write(tun_write);
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

static void begin(uint8_t options)
{
    unsigned offloads = (options & TSO ? OFFLOAD_TSO : 0U) | (options & USO ? OFFLOAD_USO : 0U) |
                        (options & GRO ? OFFLOAD_UDP_GRO : 0U);
    if (options & NO_VNET)
        offloads &= ~(unsigned)(OFFLOAD_TSO | OFFLOAD_USO);
    own = (struct filter_identity){.network = address("10.1.0.0"),
                                   .network_mask = address("255.255.0.0"),
                                   .subnet = address("10.1.5.0"),
                                   .subnet_mask = address("255.255.255.0"),
                                   .public_ip = address("172.30.0.1"),
                                   .addresses = tables.addresses,
                                   .check_source = options & CHECK_SOURCE,
                                   .check_port = options & CHECK_PORT};
    struct tunnel_ends ends = {.tun = {.fd = TUN, .vnet_header = !(options & NO_VNET), .offloads = offloads},
                               .udp_fd = SOCKET,
                               .port = PORT,
                               .offloads = offloads};
    memset(&tunnel.counters, 0, sizeof tunnel.counters);
    memset(&tunnel.refusals, 0, sizeof tunnel.refusals); /* each input starts at the same time */
    memset(&seen, 0, sizeof seen);
    memset(senders, 0, sizeof senders);
    senders[0].sequence = UINT32_MAX - 1000; /* its numbers wrap */
    senders[1].id = UINT16_MAX - 3;
    single_until_ns[0] = single_until_ns[1] = 0;
    gone = 0;
    tunnel.own = &own;
    tunnel.tables = &tables;
    tunnel.now_ns = 1;
    tunnel_join(&tunnel, &ends);
}

static void check_counters(void)
{
    uint64_t dropped = 0;
    for (size_t i = 0; i < DROP_COUNT; i++)
        dropped += tunnel.counters.drops[i];
    CHECK_EQ(tunnel.counters.udp_received_packets, seen.datagrams);
    CHECK_EQ(tunnel.counters.udp_received_bytes, seen.bytes);
    CHECK_EQ(tunnel.counters.udp_merged_receives, seen.merged);
    CHECK_EQ(tunnel.counters.receive_errors, seen.receive_errors);
    CHECK_EQ(tunnel.counters.tun_written_packets, seen.written);
    CHECK_EQ(tunnel.counters.tun_written_superpackets, seen.superpackets);
    CHECK_EQ(tunnel.counters.drops[DROP_UDP_TUN_REFUSED], seen.refused);
    CHECK_EQ(seen.written + dropped, seen.datagrams);
}

/* One turn. Whether the worker could continue. */
static bool serve(size_t limit)
{
    owed_count = flow_count = 0;
    int status = inbound_serve(&tunnel, limit);
    if (status != 0) {
        CHECK_EQ(status, gone != 0 ? -gone : -EBADF);
        return false;
    }
    CHECK_EQ(gone, 0);
    for (size_t i = 0; i < flow_count; i++)
        CHECK_EQ(flows[i].first, 0);
    check_counters();
    for (size_t i = 0; i < 2; i++) { /* refused in this turn */
        if (single_until_ns[i] == tunnel.now_ns)
            single_until_ns[i] += RETRY_SECONDS * UINT64_C(1000000000);
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    begin(data[0]);
    input.begin = data + 1;
    input.end = data + size;
    bool alive = true;
    while (alive && (size_t)(input.end - input.begin) >= sizeof(struct arrival)) {
        uint8_t fate = next_fate();
        tunnel.now_ns += 1 + (uint64_t)(fate >> 6) * 4 * UINT64_C(1000000000);
        alive = serve(1 + fate % TURN_PACKETS);
    }
    ASAN_UNPOISON_MEMORY_REGION(tunnel.buffers->inbound, sizeof tunnel.buffers->inbound);
    return 0;
}
