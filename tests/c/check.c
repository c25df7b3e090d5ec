#include "check.h"

void check_failed(const char *file, int line, const char *function, const char *condition)
{
    (void)fprintf(stderr, "%s:%d: %s: not so: %s\n", file, line, function, condition);
    abort();
}

void check_failed_eq(const char *file, int line, const char *function, const char *what, intmax_t actual,
                     intmax_t expected)
{
    (void)fprintf(stderr, "%s:%d: %s: %s, but %" PRIdMAX " is not %" PRIdMAX "\n", file, line, function, what,
                  actual, expected);
    abort();
}
