/* offload.h - the four kernel capabilities that move many packets in one system call, used where the kernel has them.
 *
 * Without them a packet costs one system call on the TUN side; with all of them one system call moves up to 64 KiB on
 * either side. Every combination carries the same packets.
 */
#pragma once

enum offload {
    OFFLOAD_TSO = 1,     /* TUN: vnet header, partial checksums, TCP superpackets both ways */
    OFFLOAD_USO = 2,     /* TUN: UDP superpackets both ways (Linux 6.2); needs TSO */
    OFFLOAD_UDP_GSO = 4, /* socket: one send for many datagrams, UDP_SEGMENT (Linux 4.18) */
    OFFLOAD_UDP_GRO = 8, /* socket: one receive for many datagrams, UDP_GRO (Linux 5.0) */
    OFFLOAD_ALL = 15,
};
