/* Which refusals are reported, how many a second, and that the taking thread never sleeps over one. */
#include "refusal.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <time.h>

#include "check.h"

static const uint64_t SECOND = 1000000000;

static struct refusal_queue queue;

static void start_anew(void)
{
    queue = (struct refusal_queue){0};
}

static bool add(uint32_t outer_source, uint32_t reason, uint64_t now_ns)
{
    struct refusal refusal = {.outer_source = outer_source, .reason = reason};
    return refusal_add(&queue, &refusal, now_ns);
}

static size_t take_all(void)
{
    struct refusal refusal;
    size_t taken = 0;
    while (refusal_take(&queue, &refusal))
        taken++;
    return taken;
}

static void a_source_is_reported_once_a_minute_for_each_reason(void)
{
    start_anew();
    for (uint64_t now = SECOND; now < 61 * SECOND; now += SECOND / 10) {
        (void)add(1, 2, now);
        (void)add(1, 3, now);
    }
    CHECK_EQ(take_all(), 2);
    CHECK(add(1, 2, 61 * SECOND));
    struct refusal refusal;
    CHECK(refusal_take(&queue, &refusal));
    CHECK_EQ(refusal.outer_source, 1);
    CHECK_EQ(refusal.reason, 2);
    CHECK_EQ(take_all(), 0);
}

static void a_flood_of_forged_sources_is_reported_at_the_limited_rate(void)
{
    start_anew();
    size_t taken = 0;
    for (uint32_t i = 0; i < 1000000; i++) { /* for ten seconds */
        if (add(i + 1, 2, SECOND + i * (SECOND / 100000)))
            taken += take_all();
    }
    CHECK_EQ(taken, REFUSAL_RING + 10 * REFUSAL_RATE - 1);
}

static void two_sources_with_one_hash_are_reported_at_the_limited_rate(void)
{
    uint32_t twin = 2; /* of 1 */
    for (bool found = false; !found; twin++) {
        start_anew();
        (void)add(1, 2, SECOND);
        (void)add(twin, 2, SECOND);
        (void)take_all();
        found = add(1, 2, SECOND);
    }
    twin--;
    start_anew();
    size_t taken = 0;
    for (uint32_t i = 0; i < 1000000; i++) {
        if (add(i % 2 == 0 ? 1 : twin, 2, SECOND + i * (SECOND / 100000)))
            taken += take_all();
    }
    CHECK(taken > 2);
    CHECK(taken <= REFUSAL_RING + 10 * REFUSAL_RATE);
}

static void a_full_ring_wakes_once_and_every_source_is_reported_later(void)
{
    start_anew();
    for (uint32_t i = 0; i < REFUSAL_RING + 20; i++)
        CHECK_EQ(add(i + 1, 2, SECOND), i == 0);
    for (uint32_t i = 0; i < REFUSAL_RING; i++) {
        struct refusal refusal;
        CHECK(refusal_take(&queue, &refusal));
        CHECK_EQ(refusal.outer_source, i + 1);
    }
    CHECK_EQ(take_all(), 0);
    /* The sources that found no room are reported at their next refusal, the others not again. */
    for (uint32_t i = 0; i < REFUSAL_RING + 20; i++)
        (void)add(i + 1, 2, 2 * SECOND);
    CHECK_EQ(take_all(), 20);
}

enum { REPORTS = 200000 };

static sem_t wakes;

static void *take_when_woken(void *unused)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    struct refusal refusal;
    for (uint32_t taken = 0; taken < REPORTS;) {
        while (refusal_take(&queue, &refusal))
            CHECK_EQ(refusal.outer_source, ++taken);
        if (taken < REPORTS && sem_timedwait(&wakes, &deadline) < 0)
            CHECK_EQ(errno, EINTR); /* else a report was added without waking it */
    }
    return unused;
}

static void the_taking_thread_is_woken_for_every_report(void)
{
    start_anew();
    pthread_t thread;
    CHECK_EQ(sem_init(&wakes, 0, 0), 0);
    CHECK_EQ(pthread_create(&thread, NULL, take_when_woken, NULL), 0);
    uint64_t now = SECOND;
    for (uint32_t i = 0; i < REPORTS;) {
        unsigned before = atomic_load(&queue.written);
        if (add(i + 1, 2, now += SECOND))
            CHECK_EQ(sem_post(&wakes), 0);
        if (atomic_load(&queue.written) != before)
            i++;
        else
            (void)sched_yield(); /* the ring is full */
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(sem_destroy(&wakes), 0);
}

int main(void)
{
    RUN(a_source_is_reported_once_a_minute_for_each_reason);
    RUN(a_flood_of_forged_sources_is_reported_at_the_limited_rate);
    RUN(two_sources_with_one_hash_are_reported_at_the_limited_rate);
    RUN(a_full_ring_wakes_once_and_every_source_is_reported_later);
    RUN(the_taking_thread_is_woken_for_every_report);
}
