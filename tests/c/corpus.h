/* corpus.h - the inputs a fuzzer starts with: written by the harness, not kept in the repository. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's entry points. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Calls write_seeds with the corpus directory of libFuzzer's command line, if it names one. */
void corpus_fill(int argc, char **argv, void (*write_seeds)(const char *directory));

/* The file of the n-th input. */
void corpus_path(char *path, size_t size, const char *directory, unsigned number);

/* Adds one input. */
void corpus_write(const char *directory, const uint8_t *input, size_t length);
