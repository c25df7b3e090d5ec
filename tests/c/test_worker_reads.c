/* The worker before a kernel that refuses to give: receives, reads from the TUN, waits; and calls that a signal
 * interrupts. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"

static struct rig rig;

enum { PACKETS = 20, PAYLOAD = 100 };

/* ---- replaced system calls ---- */

static atomic_int error_now;    /* of the calls below */
static atomic_uint errors_left; /* so many calls fail with it, one after another; with EINTR, each second one */
static atomic_uint failed_calls;

static void fail(int error, unsigned times)
{
    atomic_store(&failed_calls, 0);
    atomic_store(&error_now, error);
    atomic_store(&errors_left, times);
}

/* Whether this call is to fail; sets errno. Only the worker calls it. */
static bool fails(void)
{
    static bool was_interrupted;
    was_interrupted = !was_interrupted;
    if (atomic_load(&errors_left) == 0 || (atomic_load(&error_now) == EINTR && !was_interrupted))
        return false;
    atomic_fetch_sub(&errors_left, 1);
    atomic_fetch_add(&failed_calls, 1);
    errno = atomic_load(&error_now);
    return true;
}

static int failing_receive(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    return fails() ? -1 : faults_real_receive(fd, batch, count, flags);
}

static ssize_t failing_read(int fd, const struct iovec *iov, int count)
{
    return fd == rig.config.tun_fd && fails() ? -1 : faults_real_read(fd, iov, count);
}

static int failing_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    return fails() ? -1 : faults_real_send(fd, batch, count, flags);
}

static ssize_t failing_write(int fd, const struct iovec *iov, int count)
{
    return fd == rig.config.tun_fd && fails() ? -1 : faults_real_write(fd, iov, count);
}

static int failing_wait(int fd, struct epoll_event *events, int count, int milliseconds)
{
    return fails() ? -1 : faults_real_wait(fd, events, count, milliseconds);
}

static void replace_all(void)
{
    faults_replace_receive(failing_receive);
    faults_replace_read(failing_read);
    faults_replace_send(failing_send);
    faults_replace_write(failing_write);
    faults_replace_wait(failing_wait);
}

static void restore_all(void)
{
    faults_replace_receive(NULL);
    faults_replace_read(NULL);
    faults_replace_send(NULL);
    faults_replace_write(NULL);
    faults_replace_wait(NULL);
}

/* ---- traffic ---- */

struct ends {
    int host, peer;
};

static struct ends open_ends(void)
{
    return (struct ends){rig_socket(address("10.1.5.1"), 4000), rig_socket(address("127.0.0.6"), RIG_PORT)};
}

static void close_ends(const struct ends *ends)
{
    close(ends->host);
    close(ends->peer);
}

static void send_inward(const struct ends *ends)
{
    uint8_t packet[200];
    size_t length = rig_packet(packet, "10.1.6.2", "10.1.5.1", PAYLOAD);
    for (size_t i = 0; i < PACKETS; i++)
        rig_send(ends->peer, address("127.0.0.1"), RIG_PORT, packet, length);
}

static void send_outward(const struct ends *ends)
{
    static const uint8_t payload[PAYLOAD];
    for (size_t i = 0; i < PACKETS; i++)
        rig_send(ends->host, address("10.1.6.2"), 4000, payload, PAYLOAD);
}

static void receive_all(const struct ends *ends)
{
    uint8_t received[200];
    for (size_t i = 0; i < PACKETS; i++)
        CHECK_EQ(recv(ends->host, received, sizeof received, 0), PAYLOAD);
    for (size_t i = 0; i < PACKETS; i++)
        CHECK_EQ(recv(ends->peer, received, sizeof received, 0), 28 + PAYLOAD);
}

/* ---- tests ---- */

static void errors_that_a_receive_reports_are_counted_and_cost_no_datagram(void)
{
    static const int errors[] = {ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EMSGSIZE, ENOMEM, ENOBUFS, EPERM};
    struct ends ends = open_ends();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        fail(errors[i], 5);
        faults_replace_receive(failing_receive);
        send_inward(&ends);
        send_outward(&ends);
        receive_all(&ends);
        pump_stop(pump);
        faults_replace_receive(NULL);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_receive_errors), 5);
        CHECK_EQ(pump_failure(pump), 0);
        rig_check_balance(pump);
        pump_free(pump);
    }
    close_ends(&ends);
}

/* A connected socket gets an ICMP port unreachable, which is then its pending error. */
static void a_pending_error_of_the_socket_is_cleared_and_counted(void)
{
    struct ends ends = open_ends();
    struct pump *pump = rig_carrying(&rig);
    struct sockaddr_in closed = {.sin_family = AF_INET, .sin_port = htons(9)};
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    closed.sin_addr.s_addr = htonl(address("127.0.0.77"));
    int same = dup(rig.config.udp_fd); /* ThreadSanitizer takes a connect for a write to the descriptor */
    CHECK_EQ(connect(same, (const struct sockaddr *)&closed, sizeof closed), 0);
    CHECK_EQ(send(same, "?", 1, 0), 1);
    rig_await(pump, PUMP_STAT_receive_errors, 1);
    CHECK_EQ(connect(same, &nobody, sizeof nobody), 0);
    close(same);
    send_inward(&ends);
    send_outward(&ends);
    receive_all(&ends);
    pump_stop(pump);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_receive_errors), 1);
    CHECK(rig_stat(pump, PUMP_STAT_wakeups) < 1000); /* it does not wake again and again for it */
    CHECK_EQ(pump_failure(pump), 0);
    rig_check_balance(pump);
    pump_free(pump);
    close_ends(&ends);
}

static void await_the_end(struct pump *pump, int error)
{
    struct pollfd event = {.fd = pump_event_fd(pump), .events = POLLIN};
    CHECK_EQ(poll(&event, 1, RIG_PATIENCE_MS), 1);
    CHECK_EQ(pump_failure(pump), -error);
}

static void a_socket_that_cannot_be_read_ends_the_worker_and_is_reported(void)
{
    static const int errors[] = {EBADF, ENOTSOCK, ENOTCONN, EFAULT};
    struct ends ends = open_ends();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        fail(errors[i], UINT32_MAX);
        faults_replace_receive(failing_receive);
        send_inward(&ends);
        await_the_end(pump, errors[i]);
        faults_replace_receive(NULL);
        CHECK_EQ(atomic_load(&failed_calls), 1); /* it does not ask again */
        CHECK_EQ(rig_stat(pump, PUMP_STAT_receive_errors), 0);
        /* What waits in the socket is not lost with the worker. */
        CHECK_EQ(pump_restart(pump, rig.config.tun_fd, rig.config.udp_fd), 0);
        send_outward(&ends);
        receive_all(&ends);
        CHECK_EQ(pump_failure(pump), 0);
        pump_free(pump);
    }
    close_ends(&ends);
}

/* Between its last word and its end the thread still has a clock of its own. */
static void the_cpu_time_of_a_worker_that_ends_is_counted_once(void)
{
    struct ends ends = open_ends();
    struct pump *pump = rig_carrying(&rig);
    uint64_t cpu_ns = 0;
    for (unsigned round = 0; round < 200; round++) {
        fail(EBADF, 1);
        faults_replace_receive(failing_receive);
        while (atomic_load(&failed_calls) == 0) /* a receive that had begun may take what was sent, too */
            send_inward(&ends);
        await_the_end(pump, EBADF);
        for (unsigned look = 0; look < 20; look++) {
            uint64_t now = rig_stat(pump, PUMP_STAT_cpu_ns);
            CHECK(now >= cpu_ns);
            cpu_ns = now;
        }
        uint64_t events;
        CHECK_EQ(read(pump_event_fd(pump), &events, sizeof events), 8);
        CHECK_EQ(pump_restart(pump, rig.config.tun_fd, rig.config.udp_fd), 0);
    }
    faults_replace_receive(NULL);
    pump_stop(pump);
    CHECK(rig_stat(pump, PUMP_STAT_cpu_ns) >= cpu_ns);
    pump_free(pump);
    close_ends(&ends);
}

static void a_tun_that_cannot_be_read_ends_the_worker_and_is_reported(void)
{
    static const int errors[] = {EBADFD, EBADF, ENODEV, EIO, EFAULT};
    struct ends ends = open_ends();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        fail(errors[i], UINT32_MAX);
        faults_replace_read(failing_read);
        send_outward(&ends);
        await_the_end(pump, errors[i]);
        faults_replace_read(NULL);
        CHECK_EQ(atomic_load(&failed_calls), 1);
        CHECK_EQ(pump_restart(pump, rig.config.tun_fd, rig.config.udp_fd), 0);
        send_inward(&ends);
        receive_all(&ends);
        pump_stop(pump);
        CHECK_EQ(pump_failure(pump), 0);
        rig_check_balance(pump);
        pump_free(pump);
    }
    close_ends(&ends);
}

static void a_socket_that_cannot_send_ends_the_worker_and_is_reported(void)
{
    static const int errors[] = {EBADF, ENOTSOCK, EPIPE};
    struct ends ends = open_ends();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct pump *pump = rig_carrying(&rig);
        fail(errors[i], UINT32_MAX);
        faults_replace_send(failing_send);
        send_outward(&ends);
        await_the_end(pump, errors[i]);
        faults_replace_send(NULL);
        CHECK_EQ(atomic_load(&failed_calls), 1);
        pump_free(pump);
    }
    close_ends(&ends);
}

static void interrupted_calls_are_made_again_and_lose_nothing(void)
{
    struct ends ends = open_ends();
    struct pump *pump = rig_carrying(&rig);
    fail(EINTR, UINT32_MAX);
    replace_all();
    for (unsigned round = 0; round < 50; round++) {
        send_inward(&ends);
        send_outward(&ends);
        receive_all(&ends);
    }
    rig_await(pump, PUMP_STAT_udp_sent_packets, (uint64_t)50 * PACKETS);
    pump_stop(pump);
    restore_all();
    CHECK_EQ(pump_failure(pump), 0);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_receive_errors), 0);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_tun_written_packets), (uint64_t)50 * PACKETS);
    rig_check_balance(pump);
    pump_free(pump);
    close_ends(&ends);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    for (size_t i = 0; i < RIG_PRESETS; i++) {
        RUN_ON_RIG(errors_that_a_receive_reports_are_counted_and_cost_no_datagram, rig_presets[i]);
        RUN_ON_RIG(a_pending_error_of_the_socket_is_cleared_and_counted, rig_presets[i]);
        RUN_ON_RIG(a_socket_that_cannot_be_read_ends_the_worker_and_is_reported, rig_presets[i]);
        RUN_ON_RIG(the_cpu_time_of_a_worker_that_ends_is_counted_once, rig_presets[i]);
        RUN_ON_RIG(a_tun_that_cannot_be_read_ends_the_worker_and_is_reported, rig_presets[i]);
        RUN_ON_RIG(a_socket_that_cannot_send_ends_the_worker_and_is_reported, rig_presets[i]);
        RUN_ON_RIG(interrupted_calls_are_made_again_and_lose_nothing, rig_presets[i]);
    }
}
