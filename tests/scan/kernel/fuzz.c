/* libFuzzer target: for any input, cut anywhere, the kernel stays inside its buffers and gives the same output,
 * which is also the output of its plain C variant. Start it with `make fuzz`.
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

enum { MARGIN = RP_OUTPUT_MARGIN, MOST_INPUT = 1 << 16 };

typedef struct {
    uint8_t *bytes;
    size_t count;
    uint64_t offsets, last_output, spans_end, in_spans;
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
    for (size_t i = 0; i < output->offset_count; i++) {
        const rp_offset *entry = &output->offsets[i];
        check(entry->output >= result->last_output, "offsets are in order");
        check(entry->output >= result->count && entry->output <= result->count + output->count + 16,
              "offsets lie in the output that they came with");
        result->last_output = entry->output;
        result->offsets += entry->output * 31 + entry->input;
    }
    result->count += output->count;
    for (size_t i = 0; i < output->span_count; i++) {
        const rp_span *span = &output->spans[i];
        check(span->start >= result->spans_end && span->start < span->end, "spans are in order");
        check(span->end <= result->count, "spans are complete");
        check(span->count > 0 && span->longest > 0 && span->longest <= span->end - span->start, "spans hold something");
        check(result->bytes[span->end - 1] == '}' || result->bytes[span->end - 1] == ']', "spans end with a bracket");
        result->spans_end = span->end;
        result->in_spans += span->count;
    }
}

/* Feed all of the input, `step` bytes at a time; with small buffers, so that RP_FULL occurs. */
static result_t scan(feed_t *feed, finish_t *finish, const rp_policy *policy, const uint8_t *data, size_t length,
                     size_t step) {
    result_t result = {.bytes = malloc(2 * length + 64)};
    rp_output output = {.bytes = malloc(2 * MARGIN), .size = 2 * MARGIN, .offsets = malloc(96 * sizeof(rp_offset)),
                        .offset_size = 96, .spans = malloc(96 * sizeof(rp_span)), .span_size = 96};
    for (size_t at = 0; at < length && result.status <= RP_FULL;) {
        const size_t size = length - at < step ? length - at : step;
        uint8_t *chunk = malloc(size); /* of its own, so that reading beyond it is seen */
        memcpy(chunk, data + at, size);
        size_t done = 0;
        do {
            size_t taken = 0;
            output.count = output.offset_count = output.span_count = 0;
            result.status = feed(&result.state, policy, chunk + done, size - done, &taken, &output);
            check(taken <= size - done, "no more is taken than was given");
            check(result.status != RP_FULL || taken > 0, "the output of a block fits into empty buffers");
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
        output.count = output.offset_count = output.span_count = 0;
        finish(&result.state, &output);
        keep(&result, &output);
        check(result.state.consumed == length, "all was read");
    }
    check(result.count <= length + length / 3 + 1, "the output is no longer than the input but for NaN");
    free(output.bytes);
    free(output.offsets);
    free(output.spans);
    return result;
}

static void check_same(const result_t *one, const result_t *other, int same_spans) {
    check(one->status == other->status || (one->status <= RP_FULL && other->status <= RP_FULL), "the outcome is the same");
    check(one->count == other->count && memcmp(one->bytes, other->bytes, one->count) == 0, "the output is the same");
    check(one->offsets == other->offsets, "the offsets are the same");
    check(one->in_spans == other->in_spans || !same_spans, "as many records are in spans");
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
    /* `a` with `b` and `symbol` in it, `predictions` with `a` in it; the names come often in what the fuzzer makes. */
    static const rp_object objects[] = {
        {0},
        {NULL, 0, 2, 2},
        {(const uint8_t *)"a", 1, 4, 2},
        {(const uint8_t *)"predictions", 11, 6, 1},
        {(const uint8_t *)"b", 1, 0, 0},
        {(const uint8_t *)"symbol", 6, 7, 1},
        {(const uint8_t *)"a", 1, 0, 0},
        {(const uint8_t *)"b", 1, 0, 0},
    };
    static const uint32_t levels[][2] = {{2, 1}, {1, 3}, {3, 2}, {1, 1}};
    if (size < 3 || size > MOST_INPUT) return 0;
    const rp_policy policy = {
        .fallback = {levels[data[0] & 3][0], levels[data[0] & 3][1], 1},
        .members = members,
        .member_count = data[0] & 4 ? 0 : 2,
        .record_key = data[0] & 8 ? NULL : (const uint8_t *)"symbol",
        .record_key_length = 6,
        .objects = data[0] & 64 ? objects : NULL,
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
