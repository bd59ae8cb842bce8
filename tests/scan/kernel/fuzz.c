/* libFuzzer target: whatever comes in and however it is cut, the kernel stays inside its buffers, gives the same output,
 * and gives what its plain C variant gives. Build and run: make fuzz.
 *
 * The first bytes of an input choose a policy and where to cut. Buffers are exactly as large as promised, on the heap,
 * so that AddressSanitizer sees a step beyond. The plain variant is the same source, compiled a second time under other
 * names (RP_PLAIN and -Drp_feed=plain_feed and so on).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/prune.h"

rp_status plain_feed(rp_state *, const rp_policy *, const uint8_t *, size_t, size_t *, rp_output *);
void plain_finish(rp_state *, rp_output *);
uint64_t plain_pending(const rp_state *);

typedef rp_status feed_t(rp_state *, const rp_policy *, const uint8_t *, size_t, size_t *, rp_output *);
typedef void finish_t(rp_state *, rp_output *);

enum { ROOM = RP_OUTPUT_ROOM, MOST_INPUT = 1 << 16 };

typedef struct {
    uint8_t *bytes;
    size_t count;
    uint64_t seams, last_seam, runs_end, in_runs;
    rp_status status;
    rp_state state;
} result_t;

static void check(int holds, const char *law) {
    if (!holds) {
        fprintf(stderr, "broken: %s\n", law);
        abort();
    }
}

static void keep(result_t *result, const rp_output *output) {
    memcpy(result->bytes + result->count, output->bytes, output->count);
    for (size_t i = 0; i < output->seam_count; i++) {
        const rp_seam *seam = &output->seams[i];
        check(seam->output >= result->last_seam, "seams are in order");
        check(seam->output >= result->count && seam->output <= result->count + output->count + 16,
              "seams lie in the output that they came with");
        result->last_seam = seam->output;
        result->seams += seam->output * 31 + seam->source;
    }
    result->count += output->count;
    for (size_t i = 0; i < output->run_count; i++) {
        const rp_run *run = &output->runs[i];
        check(run->start >= result->runs_end && run->start < run->end, "runs are in order");
        check(run->end <= result->count, "runs are complete");
        check(run->count > 0 && run->longest > 0 && run->longest <= run->end - run->start, "runs hold something");
        check(result->bytes[run->end - 1] == '}' || result->bytes[run->end - 1] == ']', "runs end with a bracket");
        result->runs_end = run->end;
        result->in_runs += run->count;
    }
}

/* Feed all of the input, `step` bytes at a time; with little room, so that RP_FULL comes up. */
static result_t scan(feed_t *feed, finish_t *finish, const rp_policy *policy, const uint8_t *data, size_t length,
                     size_t step) {
    result_t result = {.bytes = malloc(2 * length + 64)};
    rp_output output = {.bytes = malloc(2 * ROOM), .size = 2 * ROOM, .seams = malloc(96 * sizeof(rp_seam)),
                        .seam_size = 96, .runs = malloc(96 * sizeof(rp_run)), .run_size = 96};
    for (size_t at = 0; at < length && result.status <= RP_FULL;) {
        const size_t size = length - at < step ? length - at : step;
        uint8_t *chunk = malloc(size); /* of its own, so that reading beyond it is seen */
        memcpy(chunk, data + at, size);
        size_t done = 0;
        do {
            size_t taken = 0;
            output.count = output.seam_count = output.run_count = 0;
            result.status = feed(&result.state, policy, chunk + done, size - done, &taken, &output);
            check(taken <= size - done, "no more is taken than was given");
            check(result.status != RP_FULL || taken > 0, "empty buffers have room for a block");
            check(result.status != RP_MORE || taken == size - done, "all is taken unless it says otherwise");
            keep(&result, &output);
            check(result.state.emitted == result.count, "what was written is counted");
            check(rp_pending(&result.state) <= result.count, "what is pending was written");
            done += taken;
        } while (done < size && result.status <= RP_FULL);
        free(chunk);
        at += size;
    }
    if (result.status <= RP_FULL) {
        output.count = output.seam_count = output.run_count = 0;
        finish(&result.state, &output);
        keep(&result, &output);
        check(result.state.consumed == length, "all was read");
    }
    check(result.count <= length + length / 3 + 1, "the output is no longer than the input but for NaN");
    free(output.bytes);
    free(output.seams);
    free(output.runs);
    return result;
}

static void check_same(const result_t *one, const result_t *other, int same_runs) {
    check(one->status == other->status || (one->status <= RP_FULL && other->status <= RP_FULL), "the outcome is the same");
    check(one->count == other->count && memcmp(one->bytes, other->bytes, one->count) == 0, "the output is the same");
    check(one->seams == other->seams, "the seams are the same");
    check(one->in_runs == other->in_runs || !same_runs, "as many records are in runs");
    if (one->status > RP_FULL)
        check(one->state.error_offset == other->state.error_offset, "the error is at the same byte");
    else
        check(one->state.depth == other->state.depth && one->state.in_string == other->state.in_string,
              "the end is the same");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const rp_member members[] = {
        {(const uint8_t *)"predictions", 11, {3, 1, 1}},
        {(const uint8_t *)"bots", 4, {3, 3, 0}},
    };
    static const uint32_t levels[][2] = {{2, 1}, {1, 3}, {3, 2}, {1, 1}};
    if (size < 3 || size > MOST_INPUT) return 0;
    const rp_policy policy = {
        .fallback = {levels[data[0] & 3][0], levels[data[0] & 3][1], 1},
        .members = members,
        .member_count = data[0] & 4 ? 0 : 2,
        .record_key = data[0] & 8 ? NULL : (const uint8_t *)"symbol",
        .record_key_length = 6,
        .max_key_bytes = data[0] & 16 ? 10 : 1 << 20,
        .max_depth = data[0] & 32 ? 6 : 1000,
    };
    const size_t step = 1 + data[1] % 200;
    data += 2, size -= 2;
    result_t whole = scan(rp_feed, rp_finish, &policy, data, size, size);
    result_t cut = scan(rp_feed, rp_finish, &policy, data, size, step);
    result_t plain = scan(plain_feed, plain_finish, &policy, data, size, step);
    check_same(&whole, &cut, 1);
    check_same(&cut, &plain, 1);
    free(whole.bytes);
    free(cut.bytes);
    free(plain.bytes);
    return 0;
}
