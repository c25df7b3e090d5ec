/* The worker before a kernel that refuses: sends, writes to the TUN; and a TUN queue that is full. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"
#include "udp_socket.h"

static struct rig rig;

/* ---- sends ---- */

static atomic_int send_error;   /* of every send to 127.0.0.7 */
static atomic_uint full_times; /* so many sends find the socket full */

static bool is_for_seven(const struct mmsghdr *message)
{
    const struct sockaddr_in *to = message->msg_hdr.msg_name;
    return to->sin_addr.s_addr == htonl(address("127.0.0.7"));
}

static int refusing_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    if (is_for_seven(&batch[0])) {
        errno = atomic_load(&send_error);
        return -1;
    }
    unsigned good = 1;
    while (good < count && !is_for_seven(&batch[good]))
        good++;
    return faults_real_send(fd, batch, good, flags);
}

static int full_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    if (atomic_load(&full_times) == 0)
        return faults_real_send(fd, batch, count, flags);
    errno = EAGAIN;
    return -1;
}

/* Not writable, as the send that met it has just found. */
static int full_poll(struct pollfd *sockets, nfds_t count, int milliseconds)
{
    if (sockets->events != POLLOUT || atomic_load(&full_times) == 0)
        return faults_real_poll(sockets, count, milliseconds);
    atomic_fetch_sub(&full_times, 1);
    sockets->revents = 0;
    return 0;
}

/* A packet to each of the two peers, `count` times; those for 127.0.0.6 are awaited. */
static void send_to_both(int host, size_t count)
{
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t payload[100] = {0}, received[200];
    for (size_t i = 0; i < count; i++) {
        rig_send(host, address("10.1.7.2"), 4000, payload, sizeof payload);
        rig_send(host, address("10.1.6.2"), 4000, payload, sizeof payload);
    }
    for (size_t i = 0; i < count; i++)
        CHECK_EQ(recv(peer, received, sizeof received, 0), 128);
    close(peer);
}

static void a_peer_the_kernel_refuses_costs_the_others_nothing(void)
{
    static const struct {
        int error;
        enum drop_reason drop;
    } refusals[] = {{EPERM, DROP_TUN_SEND_FIREWALL},         {EACCES, DROP_TUN_SEND_FIREWALL},
                    {ENETUNREACH, DROP_TUN_SEND_UNREACHABLE}, {EHOSTUNREACH, DROP_TUN_SEND_UNREACHABLE},
                    {ENETDOWN, DROP_TUN_SEND_UNREACHABLE},    {EHOSTDOWN, DROP_TUN_SEND_UNREACHABLE},
                    {EINVAL, DROP_TUN_SEND_UNREACHABLE},      {EADDRNOTAVAIL, DROP_TUN_SEND_UNREACHABLE},
                    {EMSGSIZE, DROP_TUN_SEND_TOO_LARGE},      {EIO, DROP_TUN_SEND_FAILED},
                    {ENOBUFS, DROP_TUN_SEND_FAILED},          {ENOMEM, DROP_TUN_SEND_FAILED},
                    {EAGAIN, DROP_TUN_SEND_FAILED}};
    int host = rig_socket(address("10.1.5.1"), 4000);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct pump *pump = rig_carrying(&rig);
        atomic_store(&send_error, refusals[i].error);
        faults_replace_send(refusing_send);
        send_to_both(host, 50);
        rig_await(pump, rig_drop(refusals[i].drop), 50);
        pump_stop(pump);
        faults_replace_send(NULL);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_udp_sent_packets), 50);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_send_fallbacks), 0);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_send_pauses), 0);
        rig_check_balance(pump);
        pump_free(pump);
    }
    close(host);
}

static void a_full_socket_is_tried_again_and_loses_nothing(void)
{
    int host = rig_socket(address("10.1.5.1"), 4000);
    struct pump *pump = rig_carrying(&rig);
    atomic_store(&full_times, 20);
    faults_replace_poll(full_poll);
    faults_replace_send(full_send);
    send_to_both(host, 50);
    rig_await(pump, PUMP_STAT_udp_sent_packets, 100);
    CHECK_EQ(atomic_load(&full_times), 0);
    CHECK(rig_stat(pump, PUMP_STAT_send_pauses) >= 1);
    pump_stop(pump);
    faults_replace_send(NULL);
    faults_replace_poll(NULL);
    rig_check_balance(pump);
    pump_free(pump);
    close(host);
}

/* ---- writes to the TUN ---- */

enum { UDP = 17, UDP_RUN_SIZE = 20 + 8 + RIG_RUN_PAYLOAD };

static atomic_int write_error;

static ssize_t refusing_write(int fd, const struct iovec *iov, int count)
{
    (void)fd, (void)iov, (void)count;
    errno = atomic_load(&write_error);
    return -1;
}

/* The run arrives at the host, each packet once and in order. */
static void receive_run(int host, uint8_t mark)
{
    uint8_t received[2 * RIG_RUN_PAYLOAD];
    for (size_t i = 0; i < RIG_RUN; i++) {
        size_t size = rig_run_payload(i);
        CHECK_EQ(recv(host, received, sizeof received, 0), size);
        CHECK(received[0] == mark && received[size - 1] == mark);
    }
}

static void a_receive_that_its_size_does_not_divide_is_cut_at_every_packet(void)
{
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    struct pump *pump = rig_carrying(&rig);
    uint8_t run[RIG_RUN * RIG_RUN_SIZE];
    rig_send_inner_run(peer, run, rig_run(run, UDP, 9));
    receive_run(host, 9);
    rig_await(pump, PUMP_STAT_udp_received_packets, RIG_RUN);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_udp_merged_receives), (rig.config.offloads & OFFLOAD_UDP_GRO) != 0);
    /* Of a merged receive, only the packet with a total length beyond its datagram is refused. */
    size_t length = rig_run(run, UDP, 8);
    run[UDP_RUN_SIZE + 3]++;
    rig_send_inner_run(peer, run, length);
    rig_await(pump, PUMP_STAT_udp_received_packets, (uint64_t)2 * RIG_RUN);
    rig_await(pump, PUMP_STAT_tun_written_packets, (uint64_t)2 * RIG_RUN - 1);
    CHECK_EQ(rig_stat(pump, rig_drop(DROP_UDP_BAD_LENGTH)), 1);
    pump_stop(pump);
    rig_check_balance(pump);
    pump_free(pump);
    close(host);
    close(peer);
}

static void packets_the_tun_does_not_take_are_counted_and_the_next_pass(void)
{
    static const int errors[] = {EIO, ENOMEM, ENOBUFS, EAGAIN, EINVAL};
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t run[RIG_RUN * RIG_RUN_SIZE];
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        atomic_store(&write_error, errors[i]);
        faults_replace_write(refusing_write);
        rig_send_inner_run(peer, run, rig_run(run, UDP, 1));
        rig_await(pump, rig_drop(DROP_UDP_TUN_REFUSED), RIG_RUN);
        faults_replace_write(NULL);
        rig_send_inner_run(peer, run, rig_run(run, UDP, 2));
        receive_run(host, 2);
        rig_await(pump, PUMP_STAT_tun_written_packets, RIG_RUN);
        pump_stop(pump);
        CHECK_EQ(pump_failure(pump), 0);
        rig_check_balance(pump);
        pump_free(pump);
    }
    close(host);
    close(peer);
}

static void a_tun_that_is_gone_ends_the_worker_and_is_reported(void)
{
    static const int errors[] = {EBADFD, EBADF, ENODEV};
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t run[RIG_RUN * RIG_RUN_SIZE];
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        atomic_store(&write_error, errors[i]);
        faults_replace_write(refusing_write);
        rig_send_inner_run(peer, run, rig_run(run, UDP, 1));
        struct pollfd event = {.fd = pump_event_fd(pump), .events = POLLIN};
        CHECK_EQ(poll(&event, 1, RIG_PATIENCE_MS), 1);
        CHECK_EQ(pump_failure(pump), -errors[i]);
        faults_replace_write(NULL);
        pump_free(pump);
    }
    close(peer);
}

/* ---- the TUN's queue ---- */

/* What the kernel dropped on its way into the device, for it alone counts that. */
static uint64_t queue_drops(void)
{
    FILE *devices = fopen("/proc/self/net/dev", "r");
    CHECK(devices != NULL);
    char line[512];
    uint64_t dropped = UINT64_MAX;
    while (fgets(line, sizeof line, devices) != NULL) {
        char *name = line + strspn(line, " "), *at = strchr(name, ':');
        if (at == NULL || strncmp(name, rig.device, (size_t)(at - name)) != 0)
            continue;
        for (size_t field = 0; field < 12; field++) /* receive: 8 fields; transmit: bytes, packets, errors, drops */
            dropped = strtoull(at + 1, &at, 10);
    }
    (void)fclose(devices);
    CHECK(dropped != UINT64_MAX);
    return dropped;
}

static void packets_beyond_the_queue_of_the_tun_are_counted_by_the_device(void)
{
    enum { SENT = 3000 };
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    struct pump *pump = rig_create(&rig); /* not started: the TUN is not read yet */
    struct pump_route route = rig_route("10.1.6.0", 24, "127.0.0.6");
    CHECK_EQ(pump_replace(pump, &route, 1), 0);
    for (size_t i = 0; i < SENT; i++)
        rig_send(host, address("10.1.6.2"), 4000, "", 1);
    uint64_t dropped = queue_drops();
    CHECK(dropped > 0 && dropped < SENT);
    CHECK_EQ(pump_start(pump), 0);
    rig_await(pump, PUMP_STAT_tun_read_packets, SENT - dropped);
    rig_await(pump, PUMP_STAT_udp_sent_packets, SENT - dropped);
    pump_stop(pump);
    rig_check_balance(pump);
    pump_free(pump);
    close(host);
    close(peer);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    for (size_t i = 0; i < RIG_PRESETS; i++) {
        RUN_ON_RIG(a_peer_the_kernel_refuses_costs_the_others_nothing, rig_presets[i]);
        RUN_ON_RIG(a_full_socket_is_tried_again_and_loses_nothing, rig_presets[i]);
        RUN_ON_RIG(a_receive_that_its_size_does_not_divide_is_cut_at_every_packet, rig_presets[i]);
        RUN_ON_RIG(packets_the_tun_does_not_take_are_counted_and_the_next_pass, rig_presets[i]);
        RUN_ON_RIG(a_tun_that_is_gone_ends_the_worker_and_is_reported, rig_presets[i]);
        RUN_ON_RIG(packets_beyond_the_queue_of_the_tun_are_counted_by_the_device, rig_presets[i]);
    }
}
