/* faults.h - allocations that fail on demand, and a count of those not freed yet.
 *
 * The linker sends every malloc, calloc, free and pthread_create of the linked objects through here (--wrap).
 */
#ifndef FLANNEL_UDP_TESTS_FAULTS_H
#define FLANNEL_UDP_TESTS_FAULTS_H

#include <stdbool.h>

/* The n-th allocation from now (1: the next one) fails, once. 0: none does. */
void faults_fail_allocation(long n);

/* Whether that failure is still to come; disarms it. */
bool faults_disarm(void);

/* Every pthread_create fails with EAGAIN while this is on. */
void faults_fail_threads(bool on);

/* Allocations not freed yet. */
long faults_live(void);

#endif
