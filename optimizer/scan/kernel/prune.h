/* The structural pruner: JSON in, the few bytes that matter out, at the speed of memory.
 *
 * In:  JSON bytes in any chunking, and a policy: which levels are kept, for which members of the root.
 * Out: the same JSON with every container below the kept levels emptied (`[1,2]` becomes `[]`), byte for byte what it
 *      was elsewhere, but for NaN, Infinity and -Infinity in kept fields, which become `null`;
 *      seams: where in the source the output goes on after a gap;
 *      runs: stretches of the output in which records follow each other, to be decoded as a whole.
 *
 * What can go wrong: a bracket that closes nothing, nesting deeper than the policy allows, a discarded container whose
 * curly and square brackets do not balance. The kept levels are checked by whoever parses them.
 *
 * No allocation, no recursion, no I/O, no Python. The state is zeroed to begin with, then owned by the kernel. SSE2 on
 * x86-64 (with AVX2 for whole blocks, where the machine has it and RP_BASELINE is not defined), NEON on arm64, plain C
 * elsewhere or with RP_PLAIN defined: the same output from all.
 */
#ifndef RP_PRUNE_H
#define RP_PRUNE_H

#include <stddef.h>
#include <stdint.h>

/* Longest key that is compared with the policy's names: 15 characters, each written as an escape, and two quotes. */
#define RP_KEY_BYTES 92

/* Records of a map or an array stand at level 2, those of a section at 3. */
#define RP_MAX_UNIT_LEVEL 3

/* Where the units (records or bots) of a root member stand, and how much of each is kept; levels count from the root,
 * which is 1. `runs` says whether its units are records that may be decoded many at a time. */
typedef struct {
    uint32_t unit_level;
    uint32_t kept_levels;
    uint32_t runs;
} rp_layout;

typedef struct {
    const uint8_t *name; /* without quotes, plain ASCII */
    size_t length;
    rp_layout layout;
} rp_member;

typedef struct {
    rp_layout fallback;       /* for members that are not named, and for arrays */
    const rp_member *members; /* of a root object */
    size_t member_count;
    const uint8_t *record_key; /* a root object with text under this name, before any object, is one record: or NULL */
    size_t record_key_length;
    uint64_t max_key_bytes; /* longer keys, quotes included, are no names */
    uint64_t max_depth;     /* containers inside each other */
} rp_policy;

/* From `output` on (an offset in all that was written), bytes come from `source` on (an offset in all that was read). */
typedef struct {
    uint64_t output;
    uint64_t source;
} rp_seam;

/* Units of one run; what is decoded as a whole has to be bounded, however short its units are. */
enum { RP_MOST_UNITS = 4096 };

enum { RP_MEMBERS = 1, RP_ELEMENTS = 2, RP_LINES = 3 };

/* Units of one container, one after another, in the output from `start` to `end`: members of an object from the first
 * one's key, elements of an array, or root objects. `longest` is the bytes of the longest, its key included.
 * Plain values may stand among them, or what is no JSON: whoever decodes the run finds out. */
typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t count;
    uint64_t longest;
    uint64_t kind;
} rp_run;

typedef enum {
    RP_MORE = 0,      /* all input is taken */
    RP_FULL = 1,      /* no room for the output of another block: take what is there, call again with the rest */
    RP_NEVER_OPENED,  /* errors from here on; `error_offset` says where */
    RP_TOO_DEEP,
    RP_UNBALANCED,
} rp_status;

/* Room that a call needs to take anything: what a block of 64 bytes can become. NaN grows by a third as it becomes null,
 * and copies may write 15 bytes more than they mean; a seam or a run needs two bytes of input at the least. */
enum { RP_OUTPUT_ROOM = 192, RP_SEAM_ROOM = 64, RP_RUN_ROOM = 64 };

/* Where a call writes. The caller sets the arrays and their sizes, and counts of 0; the kernel raises the counts. */
typedef struct {
    uint8_t *bytes;
    size_t size, count;
    rp_seam *seams;
    size_t seam_size, seam_count;
    rp_run *runs;
    size_t run_size, run_count;
} rp_output;

typedef struct {
    uint64_t consumed; /* bytes read in all, and written */
    uint64_t emitted;
    uint64_t error_offset; /* in the source */
    uint64_t depth;        /* containers open, discarded ones included */
    uint64_t in_string;    /* all ones inside a string */
    uint64_t escaped;      /* 1 where the next byte follows a backslash in a string */
    uint64_t shift;        /* source minus output offset, modulo 2^64, of what was written last */
    uint64_t skip_depth;   /* depth outside the container that is being discarded */
    int64_t skip_curly;    /* curly brackets open in it */
    uint64_t root_start;   /* in the output: the bracket of the root at hand */
    uint64_t item_start;   /* in the output: the last string outside units */
    uint64_t unit_start;   /* in the output: the unit at hand, from its key on */
    rp_run run;            /* the run at hand; its count is 0 where there is none */
    rp_layout layout;
    uint8_t mode, skip_mode;
    uint8_t skip_bracket; /* that opened the container that is being discarded */
    uint8_t containers[RP_MAX_UNIT_LEVEL - 1]; /* opening brackets of the containers around units, root first */
    uint8_t root_plain;    /* the root object has shown no container but arrays that were emptied */
    uint8_t root_odd;      /* a string around its units is no plain ASCII, so it takes a closer look */
    uint8_t unit_kind;     /* of the unit at hand: RP_MEMBERS and so on, or 0 where it belongs to no run */
    uint8_t significant;   /* last byte outside units and strings that is no white space; '"' after a string, 0 for a
                            * colon that follows anything else */
    uint8_t previous;      /* last byte read */
    uint8_t constant[16];  /* start of a NaN or Infinity that was cut */
    uint8_t constant_length;
    uint8_t key[RP_KEY_BYTES]; /* last string outside units, as written, without quotes */
    uint8_t key_length, key_overlong;
} rp_state;

/* Take input. Returns RP_MORE, RP_FULL, or an error, after which the state is not to be used again; what was written
 * before the error is good. `*taken` is the bytes of input that were read. */
rp_status rp_feed(rp_state *state, const rp_policy *policy, const uint8_t *input, size_t length, size_t *taken,
                  rp_output *output);

/* End the input: write what is still held back, 9 bytes at the most. Depth and in_string tell whether it was whole. */
void rp_finish(rp_state *state, rp_output *output);

/* Offset in the output from which a unit or its key may go on in the next input: what lies before is whole. */
uint64_t rp_pending(const rp_state *state);

/* Which code runs: "avx2", "sse2", "neon" or "plain". */
const char *rp_variant(void);

#endif
