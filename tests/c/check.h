/* check.h - assertions: the first one that fails prints where and what, and aborts,
 * at which a fuzzer keeps its input. */
#pragma once

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* What the macros do when an assertion fails; they do not return. */
_Noreturn void check_failed(const char *file, int line, const char *function, const char *condition);
_Noreturn void check_failed_eq(const char *file, int line, const char *function, const char *what, intmax_t actual,
                               intmax_t expected);

#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, __func__, #condition))

#define CHECK_EQ(actual, expected)                                                                           \
    do {                                                                                                     \
        intmax_t actual_ = (intmax_t)(actual), expected_ = (intmax_t)(expected);                             \
        if (actual_ != expected_) {                                                                          \
            check_failed_eq(__FILE__, __LINE__, __func__, #actual " is to be " #expected, actual_, expected_); \
        }                                                                                                    \
    } while (0)

/* Runs a test and prints its name once it has passed. */
#define RUN(test) (test(), (void)printf("ok %s\n", #test))
