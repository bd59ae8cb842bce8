/* See prune.h. A block of 64 bytes is classified into bit masks; then one of three modes takes as much of it as it can:
 *
 *   TEXT  around the units: byte by byte, since keys matter here; a few bytes per record;
 *   UNIT  inside a record or bot, at its kept levels: copied up to the next bracket;
 *   SKIP  inside a discarded container: brackets are counted, whole blocks at a time if they cannot close it.
 */
#include "prune.h"

#include <string.h>

#include "blocks.h"

enum { TEXT = 0, UNIT = 1, SKIP = 2 };

/* The current block. Copies read ahead, so AHEAD more bytes are always readable. */
enum { BLOCK = 64, AHEAD = 16, PREFETCH = 2048 };

typedef struct {
    const uint8_t *bytes;
    unsigned length;
    uint64_t offset;   /* of its first byte in the input */
    uint64_t brackets; /* outside strings */
    uint64_t openings; /* opening brackets */
    uint64_t curly;    /* curly brackets; bits of other bytes are undefined */
    uint64_t quotes;   /* quotes that begin or end strings */
    uint64_t strings;  /* inside strings, opening quotes included and closing ones excluded */
    uint64_t capitals; /* N and I outside strings: NaN or Infinity may begin there */
} block_t;

static inline uint64_t from(unsigned place) { return ~(uint64_t)0 << place; }

static inline uint64_t below(unsigned place) { return place < 64 ? ~from(place) : ~(uint64_t)0; }

static inline int is_space(uint8_t byte) { return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r'; }

/* Whether NaN or Infinity next to this byte is a whole value. */
static inline int is_delimiter(uint8_t byte) {
    return is_space(byte) || byte == ',' || byte == ':' || byte == '"' || (byte | 0x20) == '{' || (byte | 0x20) == '}';
}

/* ---- output */

static inline void put(rp_state *state, rp_output *output, uint8_t byte) {
    output->bytes[output->count++] = byte;
    state->emitted++;
}

static inline void copy(rp_state *state, rp_output *output, const block_t *block, unsigned start, unsigned stop) {
    uint8_t *to = output->bytes + output->count;
    /* Steps of a fixed size compile to single instructions; excess bytes are overwritten by the next write. */
    for (unsigned at = start; at < stop; at += AHEAD) memcpy(to + (at - start), block->bytes + at, AHEAD);
    output->count += stop - start;
    state->emitted += stop - start;
}

/* Add to the offset map that the next byte written comes from `input`, unless that follows from its last entry. */
static inline void map_offset(rp_state *state, rp_output *output, uint64_t input) {
    if (input - state->emitted != state->shift) {
        state->shift = input - state->emitted;
        output->offsets[output->offset_count++] = (rp_offset){state->emitted, input};
    }
}

static void end_span(rp_state *state, rp_output *output) {
    if (state->span.count) output->spans[output->span_count++] = state->span;
    state->span.count = 0;
}

static void add_to_span(rp_state *state, rp_output *output) {
    const uint64_t length = state->emitted - state->unit_start;
    rp_span *span = &state->span;
    if (span->kind != state->unit_kind || span->count == RP_MOST_UNITS) end_span(state, output);
    if (!span->count) *span = (rp_span){.start = state->unit_start, .kind = state->unit_kind};
    span->count++;
    span->end = state->emitted;
    if (length > span->longest) span->longest = length;
}

/* ---- keys */

static uint8_t hex_digit(uint8_t byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : 0xff;
}

/* Whether the last string outside units is this name, escapes resolved. */
static int key_is(const rp_state *state, const uint8_t *name, size_t length) {
    size_t at = 0;
    if (state->key_overlong) return 0;
    for (size_t i = 0; i < length; i++, at++) {
        if (at >= state->key_length) return 0;
        uint8_t byte = state->key[at];
        if (byte == '\\') {
            if (++at >= state->key_length) return 0;
            byte = state->key[at];
            if (byte == 'u') {
                if (at + 4 >= state->key_length) return 0;
                uint32_t point = 0;
                for (int digit = 0; digit < 4; digit++) {
                    const uint8_t value = hex_digit(state->key[++at]);
                    if (value == 0xff) return 0;
                    point = point << 4 | value;
                }
                if (point > 0x7f) return 0;
                byte = (uint8_t)point;
            } else if (byte != '/' && byte != '"' && byte != '\\') {
                return 0; /* no name has a control character */
            }
        }
        if (byte != name[i]) return 0;
    }
    return at == state->key_length;
}

static rp_layout layout_of(const rp_state *state, const rp_policy *policy) {
    if (state->containers[0] == '{' && state->significant == ':')
        for (size_t i = 0; i < policy->member_count; i++)
            if (key_is(state, policy->members[i].name, policy->members[i].length)) return policy->members[i].layout;
    return policy->fallback;
}

/* The index of the kept object that the last key names inside a kept object; 0 for none. */
static uint16_t object_inside(const rp_state *state, const rp_policy *policy, uint16_t outer) {
    const rp_object *object = &policy->objects[outer];
    for (uint16_t i = object->first; i < object->first + object->count; i++)
        if (key_is(state, policy->objects[i].name, policy->objects[i].length)) return i;
    return 0;
}

/* Store which kept object opens at a level; 0 for none. */
static void set_object(rp_state *state, uint64_t level, uint16_t in_unit, uint16_t in_root) {
    if (level > RP_MAX_OBJECTS) return; /* no kept object is that deep */
    state->in_unit[level - 1] = in_unit;
    state->in_root[level - 1] = in_root;
}

/* Whether keys matter in the innermost container of a unit: it may have kept objects. */
static int keys_matter(const rp_state *state, const rp_policy *policy) {
    if (!policy->objects || state->depth > RP_MAX_OBJECTS) return 0;
    const uint16_t in_unit = state->in_unit[state->depth - 1], in_root = state->in_root[state->depth - 1];
    return policy->objects[in_unit].count || policy->objects[in_root].count;
}

static void start_key(rp_state *state) {
    state->key_length = 0;
    state->key_overlong = 0;
}

static void add_to_key(rp_state *state, const rp_policy *policy, uint8_t byte) {
    if (byte >= 0x80 || byte == '\\') state->root_odd = 1;
    if (state->key_length < RP_KEY_BYTES && (uint64_t)state->key_length + 3 <= policy->max_key_bytes)
        state->key[state->key_length++] = byte;
    else
        state->key_overlong = 1;
}

static void add_part_to_key(rp_state *state, const block_t *block, unsigned start, unsigned stop) {
    const unsigned length = stop - start;
    if (state->key_overlong || state->key_length + length > RP_KEY_BYTES) {
        state->key_overlong = 1;
    } else {
        memcpy(state->key + state->key_length, block->bytes + start, length);
        state->key_length = (uint16_t)(state->key_length + length);
    }
}

/* Store the part of the last string between two indices; it ends at the second, and may begin before the first. */
static void note_string(rp_state *state, const block_t *block, unsigned start, unsigned stop) {
    const uint64_t openings = block->quotes & block->strings & from(start) & below(stop);
    if (openings) {
        start_key(state);
        start = rp_highest(openings) + 1;
    }
    add_part_to_key(state, block, start, stop);
}

/* Index after the last byte before `stop` that is not white space, or `start`. */
static unsigned end_of_text(const block_t *block, unsigned start, unsigned stop) {
    while (stop > start && is_space(block->bytes[stop - 1])) stop--;
    return stop;
}

/* Note whether bytes of a unit, without brackets, end with a string that may be a key, or with a key and a colon. */
static void note_key(rp_state *state, const block_t *block, unsigned start, unsigned stop) {
    if (start == stop) return;
    if (block->strings >> (stop - 1) & 1) {
        note_string(state, block, start, stop); /* the block cuts it */
        return;
    }
    const unsigned end = end_of_text(block, start, stop);
    if (end == start) return;
    if (block->bytes[end - 1] == ':') {
        const unsigned before = end_of_text(block, start, end - 1);
        if (before > start && block->quotes >> (before - 1) & 1) {
            note_string(state, block, start, before - 1);
            state->significant = '"';
        } else if (before > start) {
            state->significant = 0;
        }
        state->significant = state->significant == '"' ? ':' : 0;
    } else if (block->quotes >> (end - 1) & 1) {
        note_string(state, block, start, end - 1);
        state->significant = '"';
    } else {
        state->significant = 0;
    }
}

/* ---- NaN and Infinity */

/* Padded with zeros to the size of the buffered bytes, so that a prefix of any length can be compared. */
static const char CONSTANTS[3][16] = {"NaN", "Infinity", "-Infinity"};

/* Write the buffered bytes: `null`, padded to the same length, if they are a whole constant that stands alone (so only
 * NaN shifts the offsets of what follows); otherwise unchanged. */
static void end_constant(rp_state *state, rp_output *output, uint64_t input, int alone) {
    const unsigned length = state->constant_length;
    int whole = 0;
    for (unsigned i = 0; i < 3; i++)
        whole |= strlen(CONSTANTS[i]) == length && memcmp(CONSTANTS[i], state->constant, length) == 0;
    if (whole && alone) {
        for (unsigned i = 0; i < 4; i++) put(state, output, (uint8_t)"null"[i]);
        for (unsigned i = 4; i < length; i++) put(state, output, ' ');
        map_offset(state, output, input);
    } else {
        for (unsigned i = 0; i < length; i++) put(state, output, state->constant[i]);
    }
    state->constant_length = 0;
}

/* Buffer bytes as long as they may become a constant. Returns the index of the first byte that was not buffered. */
static unsigned take_constant(rp_state *state, rp_output *output, const block_t *block, unsigned place) {
    for (; place < block->length; place++) {
        const uint8_t byte = block->bytes[place];
        const unsigned length = state->constant_length;
        int grows = 0;
        for (unsigned i = 0; byte && i < 3; i++) /* a zero byte of the input must not match the padding */
            grows |= memcmp(CONSTANTS[i], state->constant, length) == 0 && (uint8_t)CONSTANTS[i][length] == byte;
        if (!grows) {
            end_constant(state, output, block->offset + place, is_delimiter(byte));
            break;
        }
        state->constant[state->constant_length++] = byte;
    }
    return place;
}

/* Index at which a constant may begin between two indices of a unit, or `stop`; a minus before Infinity is part of it. */
static unsigned find_constant(const rp_state *state, const block_t *block, unsigned start, unsigned stop) {
    uint64_t found = block->capitals & from(start) & below(stop);
    for (; found; found &= found - 1) {
        unsigned place = rp_lowest(found);
        if (block->bytes[place] == 'I' && place > start && block->bytes[place - 1] == '-') place--;
        if (is_delimiter(place ? block->bytes[place - 1] : state->previous)) return place;
    }
    /* A minus that ends the block: its number or constant comes with the next one. */
    if (stop == block->length && stop > start && block->bytes[stop - 1] == '-' && !(block->strings >> (stop - 1) & 1) &&
        is_delimiter(stop > 1 ? block->bytes[stop - 2] : state->previous))
        return stop - 1;
    return stop;
}

/* ---- brackets */

static void skip_container(rp_state *state, uint8_t bracket) {
    state->skip_depth = state->depth++;
    state->skip_bracket = bracket;
    state->skip_curly = bracket == '{';
    state->skip_mode = state->mode;
    state->mode = SKIP;
}

static void start_unit(rp_state *state, uint64_t start, unsigned kind) {
    state->mode = UNIT;
    state->unit_start = start;
    state->unit_kind = (uint8_t)kind;
}

/* Process an opening bracket outside units. */
static void open_in_text(rp_state *state, const rp_policy *policy, rp_output *output, uint8_t bracket) {
    const uint64_t level = state->depth + 1;
    const uint8_t inside = level > 1 ? state->containers[level - 2] : 0;
    uint16_t in_root = 0;
    if (policy->objects && bracket == '{') {
        if (level == 1)
            in_root = 1;
        else if (inside == '{' && state->significant == ':')
            in_root = object_inside(state, policy, state->in_root[level - 2]);
    }
    if (level == 2) {
        state->layout = layout_of(state, policy);
    } else if (level == 1) {
        state->layout = policy->fallback;
        state->root_plain = bracket == '{';
        state->root_start = state->emitted;
        state->root_odd = 0;
    }
    set_object(state, level, 0, in_root);
    if (level < state->layout.unit_level && level < RP_MAX_UNIT_LEVEL) {
        state->containers[level - 1] = bracket;
        if (level > 1) {
            state->root_plain = 0;
            end_span(state, output);
        }
        state->depth = level;
    } else if (bracket == '{') {
        const int named = inside == '{';
        const int passed_over = named && (state->significant != ':' || state->key_overlong ||
                                          memchr(state->key, '\\', state->key_length) || in_root ||
                                          (level == 2 && state->key_length && state->key[0] == '_'));
        const unsigned kind = named ? RP_MEMBERS : RP_ELEMENTS;
        state->root_plain = 0;
        if (policy->objects && state->layout.spans) set_object(state, level, 1, level > 1 ? in_root : 0);
        start_unit(state, named ? state->item_start : state->emitted,
                   state->layout.spans && !passed_over ? kind : 0);
        state->depth = level;
    } else {
        end_span(state, output);
        skip_container(state, bracket);
    }
    put(state, output, bracket);
}

static rp_status bracket_in_text(rp_state *state, const rp_policy *policy, rp_output *output, uint8_t bracket,
                                 int opens) {
    if (opens) {
        if (state->depth >= policy->max_depth) return RP_TOO_DEEP;
        open_in_text(state, policy, output, bracket);
    } else {
        if (!state->depth) return RP_NEVER_OPENED;
        state->depth--;
        end_span(state, output);
        put(state, output, bracket);
    }
    state->significant = bracket;
    return RP_MORE;
}

static rp_status bracket_in_unit(rp_state *state, const rp_policy *policy, rp_output *output, uint8_t bracket,
                                 int opens) {
    if (opens && state->depth >= policy->max_depth) return RP_TOO_DEEP;
    put(state, output, bracket);
    if (opens) {
        uint16_t in_unit = 0, in_root = 0;
        if (bracket == '{' && state->significant == ':' && keys_matter(state, policy)) {
            in_unit = object_inside(state, policy, state->in_unit[state->depth - 1]);
            in_root = object_inside(state, policy, state->in_root[state->depth - 1]);
        }
        if (state->depth + 1 >= (uint64_t)state->layout.unit_level + state->layout.kept_levels && !in_unit && !in_root)
            skip_container(state, bracket);
        else
            set_object(state, ++state->depth, in_unit, in_root);
        state->significant = bracket;
    } else if (--state->depth < state->layout.unit_level) {
        if (state->unit_kind)
            add_to_span(state, output);
        else
            end_span(state, output);
        state->mode = TEXT;
    }
    state->significant = bracket;
    return RP_MORE;
}

/* ---- modes: each takes what it can of a block from `*place` on */

static rp_status take_text(rp_state *state, const rp_policy *policy, const block_t *block, unsigned *place,
                           rp_output *output) {
    while (*place < block->length && state->mode == TEXT) {
        if (state->constant_length) {
            *place = take_constant(state, output, block, *place);
            continue;
        }
        const unsigned at = *place;
        const uint8_t byte = block->bytes[at];
        if (block->quotes >> at & 1) {
            if (block->strings >> at & 1) {
                if (state->depth == 1 && state->root_plain && state->significant == ':' && policy->record_key &&
                    key_is(state, policy->record_key, policy->record_key_length)) {
                    /* The root is one record. Its bytes so far were kept at the same levels. */
                    state->layout = (rp_layout){1, 1, policy->fallback.spans};
                    set_object(state, 1, policy->objects != NULL, 0);
                    start_unit(state, state->root_start, state->layout.spans && !state->root_odd ? RP_LINES : 0);
                    return RP_MORE;
                }
                start_key(state);
                state->item_start = state->emitted;
            } else {
                state->significant = '"';
            }
            put(state, output, byte);
        } else if (block->strings >> at & 1) {
            add_to_key(state, policy, byte);
            put(state, output, byte);
        } else if (block->brackets >> at & 1) {
            const rp_status status = bracket_in_text(state, policy, output, byte, (int)(block->openings >> at & 1));
            if (status != RP_MORE) return status;
        } else {
            /* A colon counts only after a key, so that the last string is the key of the next value. */
            if (!is_space(byte)) state->significant = byte == ':' && state->significant != '"' ? 0 : byte;
            if ((byte == 'N' || byte == 'I' || byte == '-') &&
                is_delimiter(at ? block->bytes[at - 1] : state->previous)) {
                *place = take_constant(state, output, block, at);
                continue;
            }
            put(state, output, byte);
        }
        (*place)++;
    }
    return RP_MORE;
}

static rp_status take_unit(rp_state *state, const rp_policy *policy, const block_t *block, unsigned *place,
                           rp_output *output) {
    while (*place < block->length && state->mode == UNIT) {
        if (state->constant_length) {
            *place = take_constant(state, output, block, *place);
            continue;
        }
        const uint64_t ahead = block->brackets & from(*place);
        const unsigned bracket = ahead ? rp_lowest(ahead) : block->length;
        const unsigned stop = find_constant(state, block, *place, bracket);
        copy(state, output, block, *place, stop);
        /* Keys matter before an object, and at the end of a block, which may cut one. */
        if ((stop == block->length || block->bytes[stop] == '{') && keys_matter(state, policy))
            note_key(state, block, *place, stop);
        *place = stop;
        if (stop < bracket) {
            state->significant = 0;
            *place = take_constant(state, output, block, stop);
        } else if (stop < block->length) {
            const rp_status status = bracket_in_unit(state, policy, output, block->bytes[stop],
                                                     (int)(block->openings >> stop & 1));
            if (status != RP_MORE) return status;
            (*place)++;
        }
    }
    return RP_MORE;
}

static rp_status stop_skipping(rp_state *state, const block_t *block, unsigned place, rp_output *output) {
    const uint8_t closing = block->bytes[place];
    if (state->skip_curly || (closing == '}') != (state->skip_bracket == '{')) return RP_UNBALANCED;
    map_offset(state, output, block->offset + place);
    put(state, output, closing);
    state->mode = state->skip_mode;
    state->significant = closing;
    return RP_MORE;
}

static rp_status take_skipped(rp_state *state, const rp_policy *policy, const block_t *block, unsigned *place,
                              rp_output *output) {
    for (uint64_t left = block->brackets & from(*place); left; left &= left - 1) {
        const unsigned at = rp_lowest(left);
        const int is_curly = (int)(block->curly >> at & 1);
        *place = at;
        if (block->openings >> at & 1) {
            if (state->depth >= policy->max_depth) return RP_TOO_DEEP;
            state->depth++;
            state->skip_curly += is_curly;
        } else {
            state->skip_curly -= is_curly;
            if (--state->depth == state->skip_depth) {
                const rp_status status = stop_skipping(state, block, at, output);
                if (status == RP_MORE) (*place)++;
                return status;
            }
        }
    }
    *place = block->length;
    return RP_MORE;
}

/* ---- strings */

/* Find quotes, strings and a pending escape byte by byte. A backslash escapes only inside strings. The masks below
 * assume that it escapes everywhere, which differs only for a backslash outside a string, where it is invalid. */
static void find_strings_exactly(rp_state *state, block_t *block) {
    uint64_t inside = state->in_string & 1, escaped = state->escaped;
    block->quotes = block->strings = 0;
    for (unsigned i = 0; i < block->length; i++) {
        const uint8_t byte = block->bytes[i];
        const int ends = byte == '"' && !escaped;
        if (ends) {
            block->quotes |= (uint64_t)1 << i;
            inside ^= 1;
        }
        escaped = inside && !escaped && byte == '\\';
        block->strings |= inside << i;
    }
    state->in_string = 0 - inside;
    state->escaped = escaped;
}

/* Escaped bytes: those after a backslash that is not itself escaped. `*carry`: the next block begins with one. */
static inline uint64_t find_escaped(uint64_t backslashes, uint64_t *carry, unsigned length) {
    uint64_t escaped = *carry;
    uint64_t left = backslashes & ~escaped;
    *carry = 0;
    while (left) {
        const unsigned at = rp_lowest(left);
        if (at + 1 == length) *carry = 1;
        if (at + 1 < BLOCK) escaped |= (uint64_t)2 << at;
        left &= ~((uint64_t)3 << at);
    }
    return escaped;
}

static void find_strings(rp_state *state, block_t *block, const rp_masks *masks) {
    uint64_t carry = state->escaped;
    block->quotes = masks->quotes & ~find_escaped(masks->backslashes, &carry, block->length);
    block->strings = rp_prefix_xor(block->quotes) ^ state->in_string;
    if (masks->backslashes & ~block->strings) {
        find_strings_exactly(state, block);
        return;
    }
    state->in_string = 0 - (block->strings >> 63);
    state->escaped = carry;
}

/* ---- whole blocks of a discarded container: most bytes of a file */

typedef rp_masks classify_t(const uint8_t *block);
typedef uint64_t count_t(uint64_t bits);

/* Lowest depth within a block, relative to its beginning. */
static inline int64_t lowest_depth(uint64_t openings, uint64_t closings) {
    int64_t depth = 0, lowest = 0;
    for (uint64_t left = openings | closings; left; left &= left - 1) {
        depth += openings & left & (0 - left) ? 1 : -1;
        if (depth < lowest) lowest = depth;
    }
    return lowest;
}

/* Skip blocks as long as the container does not end in them; returns the number of bytes. The state is in registers,
 * and memory is prefetched: chunks that another core has just inflated are not in this core's cache. */
static inline __attribute__((always_inline)) size_t skip_blocks(rp_state *state, const rp_policy *policy,
                                                                const uint8_t *input, size_t length,
                                                                classify_t *classify, count_t *count) {
    uint64_t in_string = state->in_string, escaped = state->escaped;
    int64_t inside = (int64_t)(state->depth - state->skip_depth), curly = state->skip_curly;
    const int64_t most_inside = (int64_t)(policy->max_depth - state->skip_depth);
    size_t at = 0;
    for (; at + BLOCK <= length; at += BLOCK) {
        __builtin_prefetch(input + at + PREFETCH);
        const rp_masks masks = classify(input + at);
        uint64_t carry = escaped, quotes = masks.quotes;
        if (masks.backslashes | escaped) quotes &= ~find_escaped(masks.backslashes, &carry, BLOCK);
        const uint64_t strings = rp_prefix_xor(quotes) ^ in_string;
        const uint64_t openings = masks.openings & ~strings, closings = masks.closings & ~strings;
        const int64_t opened = (int64_t)count(openings), closed = (int64_t)count(closings);
        if (masks.backslashes & ~strings || inside + opened > most_inside) break;
        if (inside <= closed && inside + lowest_depth(openings, closings) <= 0) break;
        inside += opened - closed;
        curly += (int64_t)count(openings & masks.bit5) - (int64_t)count(closings & masks.bit5);
        in_string = 0 - (strings >> 63);
        escaped = carry;
    }
    state->in_string = in_string;
    state->escaped = escaped;
    state->depth = state->skip_depth + (uint64_t)inside;
    state->skip_curly = curly;
    return at;
}

/* ---- blocks */

static inline __attribute__((always_inline)) rp_status take_block(rp_state *state, const rp_policy *policy,
                                                                  block_t *block, rp_output *output,
                                                                  classify_t *classify) {
    unsigned place = 0;
    rp_status status = RP_MORE;
    const rp_masks masks = classify(block->bytes);
    block->offset = state->consumed;
    find_strings(state, block, &masks);
    block->openings = masks.openings & ~block->strings;
    block->brackets = (masks.openings | masks.closings) & ~block->strings;
    block->curly = masks.bit5;
    block->capitals = masks.capitals & ~block->strings;
    while (place < block->length && status == RP_MORE) {
        if (state->mode == SKIP)
            status = take_skipped(state, policy, block, &place, output);
        else if (state->mode == UNIT)
            status = take_unit(state, policy, block, &place, output);
        else
            status = take_text(state, policy, block, &place, output);
    }
    state->error_offset = block->offset + place;
    return status;
}

static inline __attribute__((always_inline)) rp_status feed(rp_state *state, const rp_policy *policy,
                                                            const uint8_t *input, size_t length, size_t *taken,
                                                            rp_output *output, classify_t *classify, count_t *count) {
    rp_status status = RP_MORE;
    size_t at = 0;
    int in_container = 0; /* the last block began and ended in discarded containers: the next may be inside one */
    while (at < length && status == RP_MORE) {
        uint8_t padded[BLOCK + AHEAD];
        block_t block = {.bytes = input + at, .length = BLOCK};
        const int was_skipping = state->mode == SKIP;
        if (in_container) {
            const size_t skipped = skip_blocks(state, policy, input + at, length - at, classify, count);
            in_container = 0;
            if (skipped) {
                at += skipped;
                state->consumed += skipped;
                state->previous = input[at - 1];
                continue;
            }
        }
        const size_t left = length - at;
        if (output->size - output->count < RP_OUTPUT_MARGIN ||
            output->offset_size - output->offset_count < RP_OFFSET_MARGIN ||
            output->span_size - output->span_count < RP_SPAN_MARGIN) {
            status = RP_FULL;
            break;
        }
        __builtin_prefetch(block.bytes + PREFETCH);
        if (left < BLOCK + AHEAD) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, input + at, left);
            block.bytes = padded;
            if (left < BLOCK) block.length = (unsigned)left;
        }
        status = take_block(state, policy, &block, output, classify);
        in_container = was_skipping && state->mode == SKIP;
        at += block.length;
        state->consumed += block.length;
        state->previous = block.bytes[block.length - 1];
    }
    end_span(state, output);
    *taken = at;
    return status;
}

#ifdef RP_HAS_AVX2
RP_AVX2 static inline uint64_t count_popcnt(uint64_t bits) { return (uint64_t)__builtin_popcountll(bits); }

/* Flattened, so that nearly all that it calls is compiled for AVX2 too: with calls of SSE2 code between the wide ones,
 * gcc 12 makes it three times as slow. */
RP_AVX2 __attribute__((flatten)) static rp_status feed_avx2(rp_state *state, const rp_policy *policy,
                                                            const uint8_t *input, size_t length, size_t *taken,
                                                            rp_output *output) {
    return feed(state, policy, input, length, taken, output, rp_classify_avx2, count_popcnt);
}

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt");
}
#endif

/* ---- public functions */

rp_status rp_feed(rp_state *state, const rp_policy *policy, const uint8_t *input, size_t length, size_t *taken,
                  rp_output *output) {
#ifdef RP_HAS_AVX2
    if (has_avx2()) return feed_avx2(state, policy, input, length, taken, output);
#endif
    return feed(state, policy, input, length, taken, output, rp_classify, rp_count);
}

void rp_finish(rp_state *state, rp_output *output) {
    if (state->constant_length) end_constant(state, output, state->consumed, 1);
}

uint64_t rp_pending(const rp_state *state) {
    if (state->mode == UNIT || (state->mode == SKIP && state->skip_mode == UNIT))
        return state->unit_kind ? state->unit_start : state->emitted;
    if (state->mode == SKIP || !state->depth) return state->emitted;
    if (state->root_plain && state->depth == 1) return state->root_start;
    if (state->in_string || state->significant == '"' || state->significant == ':') return state->item_start;
    return state->emitted;
}

const char *rp_variant(void) {
#ifdef RP_HAS_AVX2
    if (has_avx2()) return "avx2";
#endif
    return RP_VARIANT;
}
