#include "rig.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "oracle.h"
#include "packets.h"
#include "tun_device.h"
#include "udp_socket.h"
#include "packet.h"

static struct sockaddr_in endpoint(uint32_t address, uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
}

static struct ifreq request_for(const char *device)
{
    struct ifreq request = {0};
    CHECK(strlen(device) < sizeof request.ifr_name);
    memcpy(request.ifr_name, device, strlen(device));
    return request;
}

static void set_up(const char *device)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = request_for(device);
    CHECK_EQ(ioctl(fd, SIOCGIFFLAGS, &request), 0);
    request.ifr_flags |= IFF_UP;
    CHECK_EQ(ioctl(fd, SIOCSIFFLAGS, &request), 0);
    close(fd);
}

void rig_enter_namespace(void)
{
    if (unshare(CLONE_NEWNET) < 0) {
        check_failed(__FILE__, __LINE__, __func__, "a network namespace is needed: run as root");
    }
    /* New devices would announce themselves with IPv6 packets, which the pump reads and counts. */
    int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY);
    if (fd >= 0) {
        CHECK_EQ(write(fd, "1", 1), 1);
        close(fd);
    }
    set_up("lo");
}

static void set_address(const char *device, unsigned long what, uint32_t address)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = request_for(device);
    struct sockaddr_in wanted = endpoint(address, 0);
    memcpy(&request.ifr_addr, &wanted, sizeof wanted);
    CHECK_EQ(ioctl(fd, what, &request), 0);
    close(fd);
}

void rig_configure(const char *device, uint32_t address, uint8_t length)
{
    set_address(device, SIOCSIFADDR, address);
    set_address(device, SIOCSIFNETMASK, oracle_mask(length));
    set_up(device);
}

int rig_socket(uint32_t address, uint16_t port)
{
    int fd = udp_socket_open(address, port);
    CHECK(fd >= 0);
    CHECK_EQ(fcntl(fd, F_SETFL, 0), 0);
    struct timeval patience = {.tv_sec = RIG_PATIENCE_MS / 1000};
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    return fd;
}

void rig_send(int fd, uint32_t to, uint16_t port, const void *bytes, size_t length)
{
    struct sockaddr_in target = endpoint(to, port);
    CHECK_EQ(sendto(fd, bytes, length, 0, (const struct sockaddr *)&target, sizeof target), length);
}

void rig_send_run(int fd, uint32_t to, uint16_t port, const void *bytes, size_t length, size_t size)
{
    struct sockaddr_in target = endpoint(to, port);
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct msghdr message = {
        .msg_name = &target, .msg_namelen = sizeof target, .msg_iov = &iov, .msg_iovlen = 1};
    uint8_t control[UDP_CONTROL_SIZE] __attribute__((aligned(8))) = {0};
    udp_socket_set_segment_size(&message, control, size);
    CHECK_EQ(sendmsg(fd, &message, 0), length);
}

void rig_open(struct rig *rig, unsigned offloads)
{
    memset(rig, 0, sizeof *rig);
    rig->config = (struct pump_config){
        .tun_fd = tun_device_open("rig%d", offloads != 0, rig->device),
        .udp_fd = udp_socket_open(address("127.0.0.1"), RIG_PORT),
        .network = address("10.1.0.0"),
        .network_length = 16,
        .subnet = address("10.1.5.0"),
        .subnet_length = 24,
        .public_ip = address("127.0.0.1"),
        .tun_address = address("10.1.5.1"),
        .check_source = 1,
        .offloads = offloads,
        .busy_poll_us = offloads == 0 || offloads == OFFLOAD_ALL ? RIG_BUSY_POLL_US : 0,
    };
    CHECK(rig->config.tun_fd >= 0);
    CHECK(rig->config.udp_fd >= 0);
    rig_configure(rig->device, address("10.1.5.1"), 16);
}

void rig_close(struct rig *rig)
{
    CHECK_EQ(close(rig->config.tun_fd), 0);
    CHECK_EQ(close(rig->config.udp_fd), 0);
}

const unsigned rig_presets[RIG_PRESETS] = {0, OFFLOAD_TSO, OFFLOAD_UDP_GSO | OFFLOAD_UDP_GRO, OFFLOAD_ALL};

struct pump_route rig_route(const char *prefix, uint32_t length, const char *public_ip)
{
    return (struct pump_route){.prefix = address(prefix),
                               .length = length,
                               .public_ip = public_ip == NULL ? 0 : address(public_ip)};
}

struct pump *rig_create(const struct rig *rig)
{
    struct pump *pump;
    CHECK_EQ(pump_create(&rig->config, &pump), 0);
    return pump;
}

struct pump *rig_carrying(const struct rig *rig)
{
    struct pump *pump = rig_create(rig);
    struct pump_route peers[] = {rig_route("10.1.6.0", 24, "127.0.0.6"), rig_route("10.1.7.0", 24, "127.0.0.7")};
    CHECK_EQ(pump_replace(pump, peers, 2), 0);
    CHECK_EQ(pump_start(pump), 0);
    return pump;
}

size_t rig_packet(uint8_t *bytes, const char *source, const char *destination, size_t payload)
{
    static const uint8_t zeroes[1400];
    return packet_build_udp(bytes, address(source), address(destination), 4000, zeroes, payload);
}

size_t rig_run_payload(size_t index)
{
    return index + 1 < RIG_RUN ? RIG_RUN_PAYLOAD : RIG_RUN_PAYLOAD / 3;
}

size_t rig_run(uint8_t *bytes, uint8_t protocol, uint8_t n)
{
    enum { IP_HEADER = 20, UDP = 17, PORT = 4000, ACK = 0x10 };
    size_t header = protocol == UDP ? 8 : 20, length = 0;
    for (size_t i = 0; i < RIG_RUN; i++) {
        uint8_t *packet = bytes + length, *transport = packet + IP_HEADER;
        size_t payload = rig_run_payload(i), number = (size_t)n * RIG_RUN + i;
        size_t total = packet_build(packet, &(struct packet_form){.source = address("10.1.6.2"),
                                                                  .destination = address("10.1.5.1"),
                                                                  .protocol = protocol,
                                                                  .payload_length = header + payload});
        write_u16(packet + 4, (uint16_t)number); /* ids and sequence numbers continue from run to run */
        write_u16(transport, PORT);
        write_u16(transport + 2, PORT);
        if (protocol == UDP) {
            write_u16(transport + 4, (uint16_t)(header + payload));
        } else {
            write_u32(transport + 4, (uint32_t)(number * RIG_RUN_PAYLOAD));
            transport[12] = 5 << 4;
            transport[13] = ACK;
        }
        memset(transport + header, n, payload);
        packet_finish(packet, total);
        length += total;
    }
    return length;
}

void rig_send_inner_run(int peer, const uint8_t *bytes, size_t length)
{
    size_t first = (size_t)bytes[2] << 8 | bytes[3];
    rig_send_run(peer, address("127.0.0.1"), RIG_PORT, bytes, length, first);
}

void rig_check_balance(struct pump *pump)
{
    uint64_t v[PUMP_STAT_COUNT], dropped_out = 0, dropped_in = 0;
    pump_read_stats(pump, v, PUMP_STAT_COUNT);
    for (unsigned i = 0; i < DROP_COUNT; i++)
        *(i < DROP_UDP_TRUNCATED ? &dropped_out : &dropped_in) += v[PUMP_STAT_FIRST_DROP + i];
    CHECK_EQ(v[PUMP_STAT_tun_read_packets], v[PUMP_STAT_udp_sent_packets] + dropped_out);
    CHECK_EQ(v[PUMP_STAT_udp_received_packets], v[PUMP_STAT_tun_written_packets] + dropped_in);
}

uint64_t rig_stat(struct pump *pump, enum pump_stat stat)
{
    uint64_t values[PUMP_STAT_COUNT];
    pump_read_stats(pump, values, PUMP_STAT_COUNT);
    return values[stat];
}

enum pump_stat rig_drop(enum drop_reason drop)
{
    return (enum pump_stat)(PUMP_STAT_FIRST_DROP + (unsigned)drop);
}

int64_t rig_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void rig_await(struct pump *pump, enum pump_stat stat, uint64_t value)
{
    int64_t deadline = rig_now_ms() + RIG_PATIENCE_MS;
    while (rig_stat(pump, stat) < value) {
        if (rig_now_ms() > deadline) {
            check_failed_eq(__FILE__, __LINE__, "patience ended", pump_stat_name(stat),
                            (intmax_t)rig_stat(pump, stat), (intmax_t)value);
        }
        usleep(500);
    }
    CHECK_EQ(rig_stat(pump, stat), value);
}

size_t rig_descriptors(void)
{
    size_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory) != NULL) /* NOLINT(concurrency-mt-unsafe): the stream is this function's own */
        count++;
    closedir(directory);
    return count;
}
