/* Runs a fuzzer's harness where libFuzzer does not: its seeds, then so many inputs that random changes make of them,
 * the same ones every time.
 *
 * Arguments: an empty directory for the seeds, and the number of inputs.
 */
#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "oracle.h"

enum { LONGEST = 4096, CHANGES = 8 };

struct input {
    uint8_t bytes[LONGEST];
    size_t length;
};

static bool read_seed(const char *directory, unsigned number, struct input *seed)
{
    char path[4096];
    corpus_path(path, sizeof path, directory, number);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return false;
    seed->length = fread(seed->bytes, 1, sizeof seed->bytes, file);
    CHECK_EQ(fclose(file), 0);
    return true;
}

/* Changes some bytes of it; at times also cuts it short or appends its own beginning. */
static void change(struct input *input, uint64_t *state)
{
    uint64_t dice = oracle_random(state);
    if (dice % 4 == 0) {
        input->length = dice >> 8 & (LONGEST - 1);
    } else if (dice % 4 == 1 && input->length <= LONGEST / 2) {
        memcpy(input->bytes + input->length, input->bytes, input->length);
        input->length *= 2;
    }
    for (uint64_t left = dice >> 32 & (CHANGES - 1); left != 0 && input->length != 0; left--) {
        dice = oracle_random(state);
        input->bytes[(dice >> 8) % input->length] = (uint8_t)dice;
    }
}

static void run(const struct input *input)
{
    uint8_t *exact = malloc(input->length + 1); /* not 0, for which malloc may have nothing */
    CHECK(exact != NULL);
    memcpy(exact, input->bytes, input->length);
    (void)LLVMFuzzerTestOneInput(exact, input->length);
    free(exact);
}

int main(int argc, char **argv)
{
    static struct input input;
    CHECK_EQ(argc, 3);
    (void)LLVMFuzzerInitialize(&argc, &argv);
    unsigned seeds = 0;
    for (; read_seed(argv[1], seeds, &input); seeds++)
        run(&input);
    CHECK(seeds != 0);
    uint64_t state = 1;
    unsigned long count = strtoul(argv[2], NULL, 10);
    for (unsigned long i = 0; i < count; i++) {
        CHECK(read_seed(argv[1], (unsigned)(oracle_random(&state) % seeds), &input));
        change(&input, &state);
        run(&input);
    }
    (void)printf("ok %lu inputs of %u seeds\n", count, seeds);
    return 0;
}
