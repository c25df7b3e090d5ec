/* Superpackets that the TUN refuses: their packets are written one by one, and later ones are tried again. */
#include <errno.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"
#include "tun_device.h"

enum { TCP = 6, UDP = 17, RETRY_SECONDS = 10 };

static struct rig rig;

static atomic_int write_error;      /* of every superpacket of this type */
static atomic_int refused_gso_type;
static atomic_uint refused_writes;

static ssize_t refusing_write(int fd, const struct iovec *iov, int count)
{
    struct virtio_net_hdr vnet;
    CHECK(iov[0].iov_len == sizeof vnet);
    memcpy(&vnet, iov[0].iov_base, sizeof vnet);
    if (vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE || vnet.gso_type != atomic_load(&refused_gso_type))
        return faults_real_write(fd, iov, count);
    atomic_fetch_add(&refused_writes, 1);
    errno = atomic_load(&write_error);
    return -1;
}

/* What the host gets of one protocol, headers included, as the TUN brought it. */
static int listen_to(int protocol)
{
    int fd = socket(AF_INET, SOCK_RAW, protocol);
    struct timeval patience = {.tv_sec = RIG_PATIENCE_MS / 1000};
    struct sockaddr_in inner = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address("10.1.5.1"))};
    CHECK(fd >= 0);
    CHECK_EQ(bind(fd, (const struct sockaddr *)&inner, sizeof inner), 0); /* else it gets the outer ones, too */
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    return fd;
}

/* The next run arrives whole, as one superpacket; or packet by packet. */
static void receive_run(int host, uint8_t protocol, uint8_t mark, bool whole)
{
    uint8_t received[2 * RIG_RUN * RIG_RUN_SIZE];
    size_t header = 20 + (protocol == UDP ? 8 : 20), payload = 0;
    for (size_t i = 0; i < RIG_RUN; i++) {
        payload += rig_run_payload(i);
        if (whole && i + 1 < RIG_RUN)
            continue;
        CHECK_EQ(recv(host, received, sizeof received, 0), header + payload);
        CHECK(received[header] == mark && received[header + payload - 1] == mark);
        payload = 0;
    }
}

struct ends {
    int peer, tcp, udp; /* the host's receivers */
};

static void carry_run(const struct ends *ends, uint8_t protocol, uint8_t mark, bool whole)
{
    uint8_t run[RIG_RUN * RIG_RUN_SIZE];
    rig_send_inner_run(ends->peer, run, rig_run(run, protocol, mark));
    receive_run(protocol == TCP ? ends->tcp : ends->udp, protocol, mark, whole);
}

/* Checks what is refused now, how often that has changed, and that an event reported it. */
static void check_state(struct pump *pump, unsigned refused, uint64_t changes)
{
    uint64_t events = 0;
    CHECK_EQ(pump_refused_offloads(pump), refused);
    CHECK_EQ(pump_offload_changes(pump), changes);
    CHECK_EQ(read(pump_event_fd(pump), &events, sizeof events), 8);
    CHECK_EQ(events, 1);
}

/* One protocol's superpackets are refused; the other one's are none of that matter. */
static void refuse(struct pump *pump, const struct ends *ends, uint8_t refused, uint8_t other)
{
    uint64_t fallbacks = rig_stat(pump, PUMP_STAT_write_fallbacks), changes = pump_offload_changes(pump);
    unsigned offload = refused == TCP ? OFFLOAD_TSO : OFFLOAD_USO;
    atomic_store(&refused_gso_type, refused == TCP ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4);
    atomic_store(&refused_writes, 0);
    carry_run(ends, refused, 1, false);
    carry_run(ends, other, 2, true);
    carry_run(ends, refused, 3, false);
    CHECK_EQ(atomic_load(&refused_writes), 1); /* not tried again for a while */
    CHECK_EQ(rig_stat(pump, PUMP_STAT_write_fallbacks), fallbacks + 1);
    check_state(pump, offload, changes + 1);

    faults_advance_clock(RETRY_SECONDS - 1);
    carry_run(ends, refused, 4, false);
    CHECK_EQ(atomic_load(&refused_writes), 1);
    faults_advance_clock(1);
    carry_run(ends, refused, 5, false);
    CHECK_EQ(atomic_load(&refused_writes), 2);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_write_fallbacks), fallbacks + 2);
    CHECK_EQ(pump_offload_changes(pump), changes + 1);

    atomic_store(&refused_gso_type, VIRTIO_NET_HDR_GSO_NONE);
    carry_run(ends, refused, 6, false);
    faults_advance_clock(RETRY_SECONDS);
    carry_run(ends, refused, 7, true);
    carry_run(ends, other, 8, true);
    check_state(pump, 0, changes + 2);
}

static void a_tun_that_refuses_superpackets_gets_their_packets_and_is_tried_again(void)
{
    static const int errors[] = {EINVAL, E2BIG, EMSGSIZE};
    struct ends ends = {rig_socket(address("127.0.0.6"), RIG_PORT), listen_to(TCP), listen_to(UDP)};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        atomic_store(&write_error, errors[i]);
        faults_replace_write(refusing_write);
        refuse(pump, &ends, TCP, UDP);
        refuse(pump, &ends, UDP, TCP);
        faults_replace_write(NULL);
        rig_await(pump, PUMP_STAT_tun_written_packets, (uint64_t)2 * 8 * RIG_RUN);
        pump_stop(pump);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_tun_written_superpackets), 2 * 3);
        CHECK_EQ(rig_stat(pump, rig_drop(DROP_UDP_TUN_REFUSED)), 0);
        pump_free(pump);
    }
    close(ends.peer);
    close(ends.tcp);
    close(ends.udp);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN_ON_RIG(a_tun_that_refuses_superpackets_gets_their_packets_and_is_tried_again, OFFLOAD_ALL);
}
