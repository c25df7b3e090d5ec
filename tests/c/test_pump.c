/* A pump's life cycle on a real TUN device and a real socket. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"

static struct rig rig;

static void starts_and_stops_in_every_order_leave_nothing_behind(void)
{
    enum { MOST = 4 };
    size_t descriptors = rig_descriptors();
    long live = faults_live();
    for (unsigned order = 0; order < 1U << MOST; order++) {
        for (unsigned steps = 0; steps <= MOST; steps++) {
            struct pump *pump = rig_create(&rig);
            bool started = false;
            for (unsigned step = 0; step < steps; step++) {
                if (order >> step & 1) {
                    int error = pump_start(pump);
                    CHECK(error == (started ? -EALREADY : 0) || (!started && error == -EALREADY));
                    started = true;
                } else {
                    pump_stop(pump);
                }
                CHECK_EQ(pump_failure(pump), 0);
            }
            pump_free(pump);
            CHECK_EQ(rig_descriptors(), descriptors);
            CHECK_EQ(faults_live(), live);
        }
    }
    pump_free(NULL);
}

static void a_stopped_pump_does_not_start_again(void)
{
    struct pump *pump = rig_create(&rig);
    CHECK_EQ(pump_start(pump), 0);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_stop(pump);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_free(pump);
}

static void a_stop_is_final_also_for_a_restart(void)
{
    struct pump *pump = rig_carrying(&rig);
    pump_stop(pump);
    CHECK_EQ(pump_restart(pump, rig.config.tun_fd, rig.config.udp_fd), -ECANCELED);
    CHECK_EQ(pump_start(pump), -EALREADY);
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t packet[64];
    rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, rig_packet(packet, "10.1.6.2", "10.1.5.1", 0));
    CHECK_EQ(rig_stat(pump, PUMP_STAT_udp_received_packets), 0);
    pump_free(pump);
    close(peer);
}

static void a_pump_that_was_stopped_before_its_start_does_not_start(void)
{
    struct pump *pump = rig_create(&rig);
    pump_stop(pump);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_free(pump);
}

static void invalid_configs_are_refused(void)
{
    struct pump *pump = NULL;
    struct pump_config bad[5];
    for (size_t i = 0; i < 5; i++)
        bad[i] = rig.config;
    bad[0].network_length = 33;
    bad[1].subnet_length = UINT32_MAX;
    bad[2].network |= 1;
    bad[3].subnet |= 1;
    bad[4].network_length = 0;
    for (size_t i = 0; i < 5; i++)
        CHECK_EQ(pump_create(&bad[i], &pump), -EINVAL);
    CHECK(pump == NULL);
}

static void bad_descriptors_are_refused_and_nothing_leaks(void)
{
    int file = open("/proc/self/exe", O_RDONLY), closed = dup(file), ends[2];
    CHECK_EQ(pipe(ends), 0);
    close(closed);
    long live = faults_live();
    size_t descriptors = rig_descriptors();
    struct {
        int tun_fd, udp_fd;
    } bad[] = {{-1, rig.config.udp_fd},   {rig.config.tun_fd, -1},     {closed, rig.config.udp_fd},
               {rig.config.tun_fd, file}, {file, rig.config.udp_fd},   {rig.config.tun_fd, ends[0]},
               {rig.config.tun_fd, closed}, {rig.config.udp_fd, rig.config.udp_fd}, {-1, -1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pump_config config = rig.config;
        struct pump *pump = NULL;
        config.tun_fd = bad[i].tun_fd;
        config.udp_fd = bad[i].udp_fd;
        CHECK(pump_create(&config, &pump) < 0);
        CHECK(pump == NULL);
        CHECK_EQ(faults_live(), live);
        CHECK_EQ(rig_descriptors(), descriptors);
    }
    close(file);
    close(ends[0]);
    close(ends[1]);
}

static void without_memory_or_descriptors_a_pump_is_not_made(void)
{
    struct pump *pump = NULL;
    long live = faults_live();
    size_t descriptors = rig_descriptors();
    for (long n = 1;; n++) {
        faults_fail_allocation(n);
        int error = pump_create(&rig.config, &pump);
        if (faults_disarm()) {
            CHECK_EQ(error, 0);
            pump_free(pump);
            break;
        }
        CHECK_EQ(error, -ENOMEM);
        CHECK_EQ(faults_live(), live);
        CHECK_EQ(rig_descriptors(), descriptors);
    }

    struct rlimit before;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    int next = dup(0);
    close(next);
    int error = -EMFILE;
    for (rlim_t spare = 0; error < 0; spare++) {
        struct rlimit tight = {.rlim_cur = (rlim_t)next + spare, .rlim_max = before.rlim_max};
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
        error = pump_create(&rig.config, &pump);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
        CHECK(error == 0 || error == -EMFILE);
        if (error < 0)
            CHECK_EQ(faults_live(), live);
        else
            pump_free(pump);
        CHECK_EQ(rig_descriptors(), descriptors);
        CHECK(spare < 100);
    }
}

static void a_pump_without_a_thread_can_start_later(void)
{
    struct pump *pump = rig_create(&rig);
    faults_fail_threads(true);
    CHECK_EQ(pump_start(pump), -EAGAIN);
    faults_fail_threads(false);
    CHECK_EQ(pump_start(pump), 0);
    pump_free(pump);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN_ON_RIG(starts_and_stops_in_every_order_leave_nothing_behind, OFFLOAD_ALL);
    RUN_ON_RIG(a_stopped_pump_does_not_start_again, OFFLOAD_ALL);
    RUN_ON_RIG(a_stop_is_final_also_for_a_restart, OFFLOAD_ALL);
    RUN_ON_RIG(a_pump_that_was_stopped_before_its_start_does_not_start, OFFLOAD_ALL);
    RUN_ON_RIG(invalid_configs_are_refused, OFFLOAD_ALL);
    RUN_ON_RIG(bad_descriptors_are_refused_and_nothing_leaks, OFFLOAD_ALL);
    RUN_ON_RIG(without_memory_or_descriptors_a_pump_is_not_made, OFFLOAD_ALL);
    RUN_ON_RIG(a_pump_without_a_thread_can_start_later, OFFLOAD_ALL);
}
