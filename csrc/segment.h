/* segment.h - a superpacket becomes packets of the size its sender asked for (pure: buffers in, buffers out).
 *
 * The kernel hands over up to 64 KiB of one flow as one packet whose vnet header tells the payload size to cut
 * it into (Linux Documentation/networking/segmentation-offloads.rst; virtio 1.2, 5.1.6). Each segment gets a
 * copy of the headers, corrected, and points at its part of the payload, which is not copied.
 */
#ifndef FLANNEL_UDP_SEGMENT_H
#define FLANNEL_UDP_SEGMENT_H

#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "packet.h"

enum {
    SEGMENT_HEADER_MAX = 120, /* IPv4 and TCP, both with all options */
    SEGMENT_COUNT_MAX = 2048, /* 64 KiB cut for the smallest segment size Linux uses (48 bytes), and some */
};

struct segmenter {
    const uint8_t *bytes;
    size_t ip_header;    /* bytes */
    size_t headers;      /* IP and transport header, bytes */
    size_t payload;      /* all of it, bytes */
    size_t payload_size; /* of every segment but the last */
    size_t count;        /* segments, 1..SEGMENT_COUNT_MAX */
    uint8_t protocol;    /* TCP or UDP */
};

/* Prepares to cut a packet that came with this vnet header. 0; -EINVAL if the header asks for what is not in
 * the packet, for another protocol, or for more than SEGMENT_COUNT_MAX segments. */
int segment_begin(struct segmenter *segmenter, const struct packet *packet,
                  const struct virtio_net_hdr *vnet);

/* Makes segment `index`: its headers, segmenter->headers bytes long, and where its payload lies. */
void segment_make(const struct segmenter *segmenter, size_t index, uint8_t header[SEGMENT_HEADER_MAX],
                  struct iovec *payload);

/* Completes a checksum that the kernel left to us (VIRTIO_NET_HDR_F_NEEDS_CSUM), in place. 0, or -EINVAL if
 * its position is not in the packet. */
int segment_complete_checksum(uint8_t *bytes, size_t length, uint8_t protocol,
                              const struct virtio_net_hdr *vnet);

#endif
