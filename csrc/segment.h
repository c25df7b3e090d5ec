/* segment.h - cuts a superpacket into packets of the size that its sender asked for (pure: buffers in, buffers out).
 *
 * The kernel hands over up to 64 KiB of one flow as one packet, whose vnet header gives the payload size of the
 * segments (Linux Documentation/networking/segmentation-offloads.rst; virtio 1.2, 5.1.6). Each segment gets a
 * corrected copy of the headers and points to its part of the payload, which is not copied.
 */
#pragma once

#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "packet.h"

enum {
    SEGMENT_HEADER_MAX = 120, /* IPv4 and TCP, both with all options */
    /* Linux sends TCP segments of at least 48 bytes (net.ipv4.tcp_min_snd_mss), of which options take up to 40: 64 KiB
     * make 8187 segments of 8 bytes. A UDP superpacket has 128 at most. */
    SEGMENT_COUNT_MAX = 8192,
};

struct segmenter {
    const uint8_t *bytes;
    size_t ip_header;    /* bytes */
    size_t headers;      /* IP and transport header, bytes */
    size_t payload;      /* of all segments, bytes */
    size_t payload_size; /* of every segment but the last, bytes */
    size_t count;        /* segments, 1..SEGMENT_COUNT_MAX */
    uint8_t protocol;    /* TCP or UDP */
};

/* Prepares to cut a packet that came with this vnet header. 0; -EINVAL if the header does not fit the packet, for a
 * protocol other than TCP and UDP, or for more than SEGMENT_COUNT_MAX segments. */
int segment_begin(struct segmenter *segmenter, const struct packet *packet,
                  const struct virtio_net_hdr *vnet);

/* Makes segment `index`: writes its headers, segmenter->headers bytes, and points *payload to its payload. */
void segment_make(const struct segmenter *segmenter, size_t index, uint8_t header[SEGMENT_HEADER_MAX],
                  struct iovec *payload);

/* Completes the checksum that the kernel left to us (VIRTIO_NET_HDR_F_NEEDS_CSUM) in `bytes`, those of the packet. 0;
 * -EINVAL, with nothing written, if its position is outside the packet or in the IP header: a container with CAP_NET_RAW
 * may choose it, and the filter has already judged the addresses. Behind the IP header it may be that of any header: a
 * container's own VXLAN leaves us the checksum of the TCP inside it. */
int segment_complete_checksum(uint8_t *bytes, const struct packet *packet, const struct virtio_net_hdr *vnet);
