/* check.h - assertions: the first one that fails says where and what, and ends the program with status 1. */
#ifndef FLANNEL_UDP_TESTS_CHECK_H
#define FLANNEL_UDP_TESTS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition);            \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define CHECK_EQ(actual, expected)                                                                           \
    do {                                                                                                     \
        intmax_t actual_ = (intmax_t)(actual), expected_ = (intmax_t)(expected);                             \
        if (actual_ != expected_) {                                                                          \
            fprintf(stderr, "%s:%d: %s: %s is %" PRIdMAX ", expected %" PRIdMAX " (%s)\n", __FILE__, __LINE__, \
                    __func__, #actual, actual_, expected_, #expected);                                       \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Runs a test, and says so once it has passed. */
#define RUN(test) (test(), printf("ok %s\n", #test))

#endif
