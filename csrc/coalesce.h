/* coalesce.h - joins packets of one flow into superpackets, which the kernel handles as one packet each (pure).
 *
 * TCP packets that follow each other and UDP packets of one size are merged if their checksums are right and cutting
 * gives them back byte for byte, as by the kernel's GRO (Linux net/ipv4/{af_inet,tcp_offload,udp_offload}.c), except:
 *   - With DF set the IP ids may be any; GRO wants them all equal or counting up. They mean nothing there (RFC 6864),
 *     and cutting renumbers them.
 *   - TCP with FIN, ECE or an AccECN flag passes alone, and a TCP superpacket has at most 64 packets. GRO merges a
 *     last packet with FIN, packets that all carry ECE, and as much as fits 64 KiB.
 *   - UDP of every flow is merged. GRO does so only for sockets and devices that ask for it; before any other socket
 *     the kernel cuts the superpacket again.
 *
 * Packets are added in the order in which they arrived; every bundle is one packet or one superpacket, and bundles
 * are written in the order of their first packets. A packet that cannot be merged closes its flow's bundle, so the
 * order inside a flow is kept. Nothing is held from one batch to the next.
 *
 * Packets are never changed: a superpacket's headers are a corrected copy, so the originals can still be written one
 * by one.
 */
#pragma once

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "packet.h"
#include "segment.h"

enum {
    COALESCE_PACKETS = 1024, /* in a batch */
    COALESCE_SEGMENTS = 64,  /* packets in a superpacket: the kernel's limit for UDP (UDP_GRO_CNT_MAX) */
    COALESCE_SETS = 16,      /* sets of open bundles; the two addresses of a flow select one */
    COALESCE_WAYS = 8,       /* open bundles in a set */
    COALESCE_IOVECS = COALESCE_SEGMENTS + 2,
};

struct coalesced_packet {
    const uint8_t *bytes;
    uint16_t length;
    uint16_t next; /* the packet after this one in its bundle */
};

struct bundle {
    uint16_t first, last; /* packets */
    uint16_t count;
    uint16_t headers;      /* IP and transport header of each packet, bytes; 0 if nothing may be merged with it */
    uint16_t payload_size; /* of every packet but the last, bytes */
    uint16_t next_id;      /* IP id that continues the bundle, if DF is not set */
    uint32_t payload;      /* of all packets, bytes */
    uint32_t next_sequence;
    uint8_t protocol;
    bool pushed;  /* the last packet carries PSH */
};

struct coalescer {
    bool tcp, udp; /* may be merged */
    size_t packet_count, bundle_count;
    struct coalesced_packet packets[COALESCE_PACKETS];
    struct bundle bundles[COALESCE_PACKETS];
    uint16_t open[COALESCE_SETS][COALESCE_WAYS]; /* bundle index + 1, 0 for none; the latest first */
};

/* Starts an empty batch. */
void coalesce_reset(struct coalescer *coalescer);

/* Adds a packet, whose bytes must stay in place until the batch is written. Returns whether there was room. */
bool coalesce_add(struct coalescer *coalescer, const struct packet *packet);

/* Prepares bundle `index` for tun_device_write: fills *vnet, header[] and iov[]. Returns the number of iovecs. */
size_t coalesce_build(const struct coalescer *coalescer, size_t index, struct virtio_net_hdr *vnet,
                      uint8_t header[SEGMENT_HEADER_MAX], struct iovec iov[COALESCE_IOVECS]);
