/* Prune standard input, cut into pieces of argv[1] bytes, with the policy of a rolling file; print what comes out: the
 * bytes, then a line for each offset and each span, then how it ended. Tests compare the variants for different
 * machines with it, one of them under an emulator. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/prune.h"

int main(int argc, char **argv) {
    enum { MOST = 1 << 24, OFFSETS = 1 << 20, SPANS = 1 << 18 };
    static const rp_member members[] = {
        {(const uint8_t *)"predictions", 11, {3, 1, 1}},
        {(const uint8_t *)"symbols", 7, {3, 1, 1}},
        {(const uint8_t *)"bots", 4, {3, 3, 0}},
        {(const uint8_t *)"_bots", 5, {3, 3, 0}},
    };
    static const rp_object objects[] = {
        {0}, {NULL, 0, 2, 1}, {(const uint8_t *)"curves", 6, 3, 1}, {(const uint8_t *)"a", 1, 0, 0},
    };
    const rp_policy policy = {{2, 1, 1}, members, 4, (const uint8_t *)"symbol", 6, objects, 1 << 20, 1000};
    const size_t step = argc > 1 ? strtoul(argv[1], NULL, 10) : MOST;
    uint8_t *input = malloc(MOST);
    rp_output output = {.bytes = malloc(2 * (size_t)MOST), .size = 2 * (size_t)MOST,
                        .offsets = malloc(OFFSETS * sizeof(rp_offset)), .offset_size = OFFSETS,
                        .spans = malloc(SPANS * sizeof(rp_span)), .span_size = SPANS};
    rp_state state = {0};
    rp_status status = RP_MORE;
    if (!input || !output.bytes || !output.offsets || !output.spans) return 2;
    const size_t length = fread(input, 1, MOST, stdin);
    for (size_t at = 0; at < length && status == RP_MORE; at += step) {
        size_t taken;
        status = rp_feed(&state, &policy, input + at, length - at < step ? length - at : step, &taken, &output);
    }
    if (status == RP_MORE) rp_finish(&state, &output);
    fwrite(output.bytes, 1, output.count, stdout);
    for (size_t i = 0; i < output.offset_count; i++)
        printf("\noffset %" PRIu64 " %" PRIu64, output.offsets[i].output, output.offsets[i].input);
    for (size_t i = 0; i < output.span_count; i++)
        printf("\nspan %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, output.spans[i].start,
               output.spans[i].end, output.spans[i].count, output.spans[i].longest, output.spans[i].kind);
    printf("\nstatus %d depth %" PRIu64 " in string %d\n", (int)status, state.depth, state.in_string != 0);
    if (status > RP_FULL) printf("at %" PRIu64 "\n", state.error_offset);
    return 0;
}
