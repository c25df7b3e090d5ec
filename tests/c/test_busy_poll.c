/* A worker that looks again before it sleeps: when it starts to, and what ends it. */
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"

enum { FOR_EVER_US = 3600U * 1000000U, STREAK = 8 };

static struct rig rig;
static atomic_ulong sleeps; /* calls of epoll_wait */

static int counting_wait(int fd, struct epoll_event *events, int count, int milliseconds)
{
    atomic_fetch_add(&sleeps, 1);
    return faults_real_wait(fd, events, count, milliseconds);
}

/* A container's socket and a peer's, with a pump between them. */
struct exchange {
    struct pump *pump;
    int host, peer;
};

static struct exchange begin(uint32_t busy_poll_us)
{
    rig.config.busy_poll_us = busy_poll_us;
    return (struct exchange){
        .pump = rig_carrying(&rig),
        .host = rig_socket(address("10.1.5.1"), 4000),
        .peer = rig_socket(address("127.0.0.6"), RIG_PORT),
    };
}

static void end(const struct exchange *exchange)
{
    pump_stop(exchange->pump);
    rig_check_balance(exchange->pump);
    pump_free(exchange->pump);
    close(exchange->host);
    close(exchange->peer);
}

/* One packet out and one in, one after the other, so many times. */
static void ping_pong(const struct exchange *exchange, size_t times)
{
    uint8_t packet[100], received[200];
    size_t length = rig_packet(packet, "10.1.6.2", "10.1.5.1", 20);
    for (size_t i = 0; i < times; i++) {
        rig_send(exchange->host, address("10.1.6.2"), 4000, packet, 20);
        CHECK_EQ(recv(exchange->peer, received, sizeof received, 0), 48);
        rig_send(exchange->peer, address("127.0.0.1"), RIG_PORT, packet, length);
        CHECK_EQ(recv(exchange->host, received, sizeof received, 0), 20);
    }
}

static void small_packets_in_turn_are_carried_without_a_sleep(void)
{
    struct exchange exchange = begin(FOR_EVER_US);
    ping_pong(&exchange, STREAK);
    unsigned long before = atomic_load(&sleeps);
    ping_pong(&exchange, 200);
    CHECK_EQ(atomic_load(&sleeps), before);
    end(&exchange); /* and it stops, although nothing wakes it */
}

static void silence_ends_busy_polling(void)
{
    struct exchange exchange = begin(20 * 1000);
    ping_pong(&exchange, STREAK);
    unsigned long before = atomic_load(&sleeps);
    ping_pong(&exchange, 1);
    int64_t deadline = rig_now_ms() + RIG_PATIENCE_MS;
    while (atomic_load(&sleeps) == before) {
        CHECK(rig_now_ms() < deadline);
        usleep(500);
    }
    ping_pong(&exchange, 1);
    end(&exchange);
}

static void bulk_traffic_ends_busy_polling(void)
{
    struct exchange exchange = begin(FOR_EVER_US);
    ping_pong(&exchange, STREAK);
    unsigned long before = atomic_load(&sleeps);
    uint8_t payload[1400] = {0}, received[1500];
    while (atomic_load(&sleeps) == before) {
        for (size_t i = 0; i < 64; i++)
            rig_send(exchange.host, address("10.1.6.2"), 4000, payload, sizeof payload);
        for (size_t i = 0; i < 64; i++)
            CHECK_EQ(recv(exchange.peer, received, sizeof received, 0), 1428);
    }
    end(&exchange);
}

static void a_busy_poll_of_zero_never_polls(void)
{
    struct exchange exchange = begin(0);
    unsigned long before = atomic_load(&sleeps);
    ping_pong(&exchange, 200);
    CHECK(atomic_load(&sleeps) - before >= 200); /* each packet out is carried before the one in is sent */
    end(&exchange);
}

static void tables_change_and_memory_is_freed_meanwhile(void)
{
    struct exchange exchange = begin(FOR_EVER_US);
    ping_pong(&exchange, STREAK);
    unsigned long before = atomic_load(&sleeps);
    long live = 0;
    for (uint32_t i = 0; i < 100; i++) {
        struct pump_route changes[2] = {rig_route("10.1.9.128", 25, i % 2 == 0 ? "127.0.0.9" : NULL),
                                        rig_route("10.1.6.0", 24, "127.0.0.6")};
        CHECK_EQ(pump_update(exchange.pump, changes, 2), 0);
        ping_pong(&exchange, 2);
        if (i == 10)
            live = faults_live();
    }
    CHECK(faults_live() <= live + 2);
    CHECK_EQ(atomic_load(&sleeps), before);
    end(&exchange);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    faults_replace_wait(counting_wait);
    for (size_t i = 0; i < RIG_PRESETS; i++) {
        RUN_ON_RIG(small_packets_in_turn_are_carried_without_a_sleep, rig_presets[i]);
        RUN_ON_RIG(silence_ends_busy_polling, rig_presets[i]);
        RUN_ON_RIG(bulk_traffic_ends_busy_polling, rig_presets[i]);
        RUN_ON_RIG(a_busy_poll_of_zero_never_polls, rig_presets[i]);
        RUN_ON_RIG(tables_change_and_memory_is_freed_meanwhile, rig_presets[i]);
    }
}
