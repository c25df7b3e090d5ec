/* rig.h - a network namespace with a TUN device and UDP sockets on loopback addresses, for a real pump. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tunpump.h"

enum { RIG_PORT = 8285, RIG_PATIENCE_MS = 20000, RIG_PRESETS = 4, RIG_BUSY_POLL_US = 200 };

/* Moves the program into a fresh network namespace with lo up and IPv6 off. Needs root. */
void rig_enter_namespace(void);

/* Gives the device an address and sets it up; the prefix becomes a route. Host byte order. */
void rig_configure(const char *device, uint32_t address, uint8_t length);

/* A bound UDP socket with large buffers, whose receive gives up after the patience. */
int rig_socket(uint32_t address, uint16_t port);

/* Sends a datagram whole. */
void rig_send(int fd, uint32_t to, uint16_t port, const void *bytes, size_t length);

/* Sends datagrams of `size` bytes, the last perhaps shorter, in one go (UDP_SEGMENT): as a superpacket where the
 * device takes one, and a socket with UDP_GRO receives them whole. */
void rig_send_run(int fd, uint32_t to, uint16_t port, const void *bytes, size_t length, size_t size);

/* What a pump joins: a TUN device 10.1.5.1/16 and the socket 127.0.0.1:RIG_PORT. */
struct rig {
    struct pump_config config;
    char device[16];
};

/* `offloads` (enum offload) are those the pump is to use. With none of them, and with all, it polls. */
void rig_open(struct rig *rig, unsigned offloads);
void rig_close(struct rig *rig);

/* Sets of offloads that between them take every way through the worker. */
extern const unsigned rig_presets[RIG_PRESETS];

/* Each test has a device of its own: packets that one left unread are none of the next one's. */
#define RUN_ON_RIG(test, offloads) (rig_open(&rig, offloads), RUN(test), rig_close(&rig))

/* A route; without a PublicIP its withdrawal. */
struct pump_route rig_route(const char *prefix, uint32_t length, const char *public_ip);

/* A pump on the rig; and one that runs, with the peers 127.0.0.6 for 10.1.6.0/24 and 127.0.0.7 for 10.1.7.0/24. */
struct pump *rig_create(const struct rig *rig);
struct pump *rig_carrying(const struct rig *rig);

/* Writes a UDP packet from and to port 4000 with that many zeroes. Its length. */
size_t rig_packet(uint8_t *bytes, const char *source, const char *destination, size_t payload);

/* A run: packets of one flow from 10.1.6.2 to port 4000 of 10.1.5.1, which may be merged; the last is shorter. */
enum { RIG_RUN = 5, RIG_RUN_PAYLOAD = 200, RIG_RUN_SIZE = 20 + 20 + RIG_RUN_PAYLOAD };

/* Writes the n-th run of TCP (6) or UDP (17), filled with n, to bytes[RIG_RUN * RIG_RUN_SIZE]. Its length. */
size_t rig_run(uint8_t *bytes, uint8_t protocol, uint8_t n);

/* The payload of a run's packet. */
size_t rig_run_payload(size_t index);

/* Sends a run to the pump as one segmented send, which a socket with UDP_GRO receives whole. */
void rig_send_inner_run(int peer, const uint8_t *bytes, size_t length);

/* Every packet read was sent or dropped, every datagram delivered or dropped. Only for a pump at rest. */
void rig_check_balance(struct pump *pump);

/* A statistic of the pump. */
uint64_t rig_stat(struct pump *pump, enum pump_stat stat);

/* The statistic's number of a refusal. */
enum pump_stat rig_drop(enum drop_reason drop);

/* Waits until the statistic has the value; fails if it passes it or the patience ends. */
void rig_await(struct pump *pump, enum pump_stat stat, uint64_t value);

/* CLOCK_MONOTONIC in milliseconds. */
int64_t rig_now_ms(void);

/* How many descriptors the program has open. */
size_t rig_descriptors(void);
