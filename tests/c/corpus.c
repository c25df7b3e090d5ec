#include "corpus.h"

#include <sys/stat.h>

#include "check.h"

void corpus_fill(int argc, char **argv, void (*write_seeds)(const char *directory))
{
    struct stat status;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-' && stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode)) {
            write_seeds(argv[i]);
            return;
        }
    }
}

void corpus_path(char *path, size_t size, const char *directory, unsigned number)
{
    int written = snprintf(path, size, "%s/seed-%u", directory, number);
    CHECK(written > 0 && (size_t)written < size);
}

void corpus_write(const char *directory, const uint8_t *input, size_t length)
{
    static unsigned number;
    char path[4096];
    corpus_path(path, sizeof path, directory, number++);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK_EQ(fwrite(input, 1, length, file), length);
    CHECK_EQ(fclose(file), 0);
}
