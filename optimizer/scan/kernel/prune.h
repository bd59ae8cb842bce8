/* The structural pruner: empties the containers of a JSON text below the levels that are kept, at the speed of memory.
 *
 * Input:  JSON bytes in any chunking, and a policy: which levels are kept, for which members of the root, and which
 *         objects in records.
 * Output: the same JSON with every other container below the kept levels emptied (`[1,2]` becomes `[]`), unchanged elsewhere,
 *         except that NaN, Infinity and -Infinity in kept fields become `null`;
 *         offsets: where in the input the output continues after a gap;
 *         spans: parts of the output in which records follow each other, to be decoded as one batch.
 *
 * Errors: a bracket that closes nothing, nesting deeper than the policy allows, a discarded container whose curly and
 * square brackets do not balance. The parser of the output checks the kept levels.
 *
 * No allocation, no recursion, no I/O, no Python. The caller zeroes the state once; then the kernel owns it. SSE2 on
 * x86-64 (AVX2 where the machine has it and RP_BASELINE is not defined), NEON on arm64, plain C
 * elsewhere or with RP_PLAIN defined: the same output from all.
 */
#ifndef RP_PRUNE_H
#define RP_PRUNE_H

#include <stddef.h>
#include <stdint.h>

/* Longest key that is compared with the policy's names: 64 characters, each written as an escape, and two quotes. */
#define RP_KEY_BYTES 386

/* Records of a map or an array stand at level 2, those of a section at 3. */
#define RP_MAX_UNIT_LEVEL 3

/* The level of the units (records or bots) of a root member, and how much of each is kept; levels count from the root,
 * which is 1. `spans` says whether its units are records that may be decoded as a batch. */
typedef struct {
    uint32_t unit_level;
    uint32_t kept_levels;
    uint32_t spans;
} rp_layout;

typedef struct {
    const uint8_t *name; /* without quotes, plain ASCII */
    size_t length;
    rp_layout layout;
} rp_member;

/* An object that is kept in records. The objects inside it follow each other: `count` of them, the first at the index
 * `first`. Index 0 is for none, and 1 for the record itself. */
typedef struct {
    const uint8_t *name; /* as in rp_member; NULL for the record */
    size_t length;
    uint16_t first, count;
} rp_object;

/* Levels at which such objects may occur; the caller limits their depth to RP_MAX_OBJECTS - RP_MAX_UNIT_LEVEL. */
#define RP_MAX_OBJECTS 12

typedef struct {
    rp_layout fallback;       /* for members that are not named, and for arrays */
    const rp_member *members; /* of a root object */
    size_t member_count;
    const uint8_t *record_key; /* a root object with text under this name, before any object, is one record; or NULL */
    size_t record_key_length;
    const rp_object *objects; /* or NULL, if none are kept */
    uint64_t max_key_bytes; /* longer keys, quotes included, match no name */
    uint64_t max_depth;     /* the most nested containers */
} rp_policy;

/* An entry of the offset map: the output from offset `output` on comes from the input at offset `input`. */
typedef struct {
    uint64_t output;
    uint64_t input;
} rp_offset;

/* The most units of one span, so that a batch is bounded however short its units are. */
enum { RP_MOST_UNITS = 4096 };

enum { RP_MEMBERS = 1, RP_ELEMENTS = 2, RP_LINES = 3 };

/* Consecutive units of one container, in the output from `start` to `end`: members of an object from the first key on,
 * elements of an array, or root objects. `longest` is the size of the longest in bytes, its key included.
 * There may be plain values or invalid JSON between them: the decoder of the span detects it. */
typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t count;
    uint64_t longest;
    uint64_t kind;
} rp_span;

typedef enum {
    RP_MORE = 0,      /* all input was consumed */
    RP_FULL = 1,      /* the output of another block may not fit: empty the buffers, call again with the rest */
    RP_NEVER_OPENED,  /* errors from here on; `error_offset` says where */
    RP_TOO_DEEP,
    RP_UNBALANCED,
} rp_status;

/* Free space that a call needs to make progress: the most output of a block of 64 bytes. NaN grows by a third when it
 * becomes null, and copies may write 15 bytes past their end; an offset or a span needs two bytes of input. */
enum { RP_OUTPUT_MARGIN = 192, RP_OFFSET_MARGIN = 64, RP_SPAN_MARGIN = 64 };

/* Where a call writes. The caller sets the arrays and their sizes, and counts of 0; the kernel raises the counts. */
typedef struct {
    uint8_t *bytes;
    size_t size, count;
    rp_offset *offsets;
    size_t offset_size, offset_count;
    rp_span *spans;
    size_t span_size, span_count;
} rp_output;

typedef struct {
    uint64_t consumed; /* total bytes read, and written */
    uint64_t emitted;
    uint64_t error_offset; /* in the input */
    uint64_t depth;        /* containers open, discarded ones included */
    uint64_t in_string;    /* all ones inside a string */
    uint64_t escaped;      /* 1 where the next byte follows a backslash in a string */
    uint64_t shift;        /* input offset minus output offset, modulo 2^64, of the last byte written */
    uint64_t skip_depth;   /* depth outside the container that is being discarded */
    int64_t skip_curly;    /* curly brackets open in it */
    uint64_t root_start;   /* in the output: the bracket of the current root */
    uint64_t item_start;   /* in the output: the last string outside units */
    uint64_t unit_start;   /* in the output: the current unit, from its key on */
    rp_span span;          /* the current span; its count is 0 if there is none */
    rp_layout layout;
    uint8_t mode, skip_mode;
    uint8_t skip_bracket; /* the one that opened the container that is being discarded */
    uint8_t containers[RP_MAX_UNIT_LEVEL - 1]; /* opening brackets of the containers around units, root first */
    uint8_t root_plain;    /* the root object has had no container except emptied arrays */
    uint8_t root_odd;      /* a string around its units is not plain ASCII: the pruner in Python handles it */
    uint8_t unit_kind;     /* kind of the current unit (RP_MEMBERS, ...), or 0 if it belongs to no span */
    uint8_t significant;   /* last byte outside strings that is not white space; '"' after a string, 0 for a colon that
                            * follows anything else; in units only where keys matter */
    uint8_t previous;      /* last byte read */
    uint8_t constant[16];  /* beginning of a NaN or Infinity that the end of the input cut */
    uint8_t constant_length;
    uint8_t key[RP_KEY_BYTES]; /* last string outside units, as written, without quotes; in units only where it matters */
    uint16_t key_length;
    uint8_t key_overlong;
    /* Which kept object each open container is: if the unit is a record, and if the root is one. */
    uint16_t in_unit[RP_MAX_OBJECTS], in_root[RP_MAX_OBJECTS];
} rp_state;

/* Process input. Returns RP_MORE, RP_FULL, or an error, after which the state must not be used again; the output before
 * the error is valid. `*taken` is the number of input bytes read. */
rp_status rp_feed(rp_state *state, const rp_policy *policy, const uint8_t *input, size_t length, size_t *taken,
                  rp_output *output);

/* End the input: write what is still buffered, at most 9 bytes. depth and in_string tell whether it was complete. */
void rp_finish(rp_state *state, rp_output *output);

/* Offset in the output of a unit or key that may continue in the next input: everything before it is complete. */
uint64_t rp_pending(const rp_state *state);

/* The variant that is used: "avx2", "sse2", "neon" or "plain". */
const char *rp_variant(void);

#endif
