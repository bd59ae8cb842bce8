/* Bit masks over blocks of 64 bytes, one bit per byte, the first byte lowest. Each architecture has its own vectors;
 * the code above them is the same for all. */
#ifndef RP_BLOCKS_H
#define RP_BLOCKS_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(RP_PLAIN)
#define RP_VARIANT "sse2"
#include <emmintrin.h>

typedef struct {
    __m128i lanes[4];
} rp_vectors;

static inline rp_vectors rp_load(const uint8_t *block) {
    return (rp_vectors){{
        _mm_loadu_si128((const __m128i *)(const void *)block),
        _mm_loadu_si128((const __m128i *)(const void *)(block + 16)),
        _mm_loadu_si128((const __m128i *)(const void *)(block + 32)),
        _mm_loadu_si128((const __m128i *)(const void *)(block + 48)),
    }};
}

/* The highest bit of each byte. */
static inline uint64_t rp_bits(__m128i a, __m128i b, __m128i c, __m128i d) {
    const uint64_t low = (uint32_t)_mm_movemask_epi8(a) | (uint32_t)_mm_movemask_epi8(b) << 16;
    const uint64_t high = (uint32_t)_mm_movemask_epi8(c) | (uint32_t)_mm_movemask_epi8(d) << 16;
    return low | high << 32;
}

static inline uint64_t rp_equal(rp_vectors v, uint8_t byte) {
    const __m128i wanted = _mm_set1_epi8((char)byte);
    return rp_bits(_mm_cmpeq_epi8(v.lanes[0], wanted), _mm_cmpeq_epi8(v.lanes[1], wanted),
                   _mm_cmpeq_epi8(v.lanes[2], wanted), _mm_cmpeq_epi8(v.lanes[3], wanted));
}

static inline rp_vectors rp_with_bit5(rp_vectors v) {
    const __m128i bit5 = _mm_set1_epi8(0x20);
    return (rp_vectors){{_mm_or_si128(v.lanes[0], bit5), _mm_or_si128(v.lanes[1], bit5),
                         _mm_or_si128(v.lanes[2], bit5), _mm_or_si128(v.lanes[3], bit5)}};
}

static inline uint64_t rp_bit5(rp_vectors v) {
    return rp_bits(_mm_slli_epi16(v.lanes[0], 2), _mm_slli_epi16(v.lanes[1], 2), _mm_slli_epi16(v.lanes[2], 2),
                   _mm_slli_epi16(v.lanes[3], 2));
}

#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(RP_PLAIN)
#define RP_VARIANT "neon"
#include <arm_neon.h>

typedef struct {
    uint8x16_t lanes[4];
} rp_vectors;

static inline rp_vectors rp_load(const uint8_t *block) {
    return (rp_vectors){{vld1q_u8(block), vld1q_u8(block + 16), vld1q_u8(block + 32), vld1q_u8(block + 48)}};
}

/* One bit per byte; each byte is all ones or all zeros. Neighbours are added pairwise until 64 bytes have become 8. */
static inline uint64_t rp_bits(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    static const uint8_t places[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t place = vld1q_u8(places);
    const uint8x16_t low = vpaddq_u8(vandq_u8(a, place), vandq_u8(b, place));
    const uint8x16_t high = vpaddq_u8(vandq_u8(c, place), vandq_u8(d, place));
    const uint8x16_t both = vpaddq_u8(low, high);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(both, both)), 0);
}

static inline uint64_t rp_equal(rp_vectors v, uint8_t byte) {
    const uint8x16_t wanted = vdupq_n_u8(byte);
    return rp_bits(vceqq_u8(v.lanes[0], wanted), vceqq_u8(v.lanes[1], wanted), vceqq_u8(v.lanes[2], wanted),
                   vceqq_u8(v.lanes[3], wanted));
}

static inline rp_vectors rp_with_bit5(rp_vectors v) {
    const uint8x16_t bit5 = vdupq_n_u8(0x20);
    return (rp_vectors){{vorrq_u8(v.lanes[0], bit5), vorrq_u8(v.lanes[1], bit5), vorrq_u8(v.lanes[2], bit5),
                         vorrq_u8(v.lanes[3], bit5)}};
}

static inline uint64_t rp_bit5(rp_vectors v) {
    const uint8x16_t bit5 = vdupq_n_u8(0x20);
    return rp_bits(vtstq_u8(v.lanes[0], bit5), vtstq_u8(v.lanes[1], bit5), vtstq_u8(v.lanes[2], bit5),
                   vtstq_u8(v.lanes[3], bit5));
}

#else
#define RP_VARIANT "plain"

/* Eight bytes in a word, the first one lowest whatever the byte order of the machine. */
typedef struct {
    uint64_t words[8];
} rp_vectors;

#define RP_EACH_BYTE(byte) (0x0101010101010101u * (uint64_t)(byte))

static inline rp_vectors rp_load(const uint8_t *block) {
    rp_vectors v;
    for (unsigned i = 0; i < 8; i++, block += 8)
        v.words[i] = (uint64_t)block[0] | (uint64_t)block[1] << 8 | (uint64_t)block[2] << 16 | (uint64_t)block[3] << 24 |
                     (uint64_t)block[4] << 32 | (uint64_t)block[5] << 40 | (uint64_t)block[6] << 48 |
                     (uint64_t)block[7] << 56;
    return v;
}

/* The highest bits of eight bytes, side by side. */
static inline uint64_t rp_gather(uint64_t word) { return (word >> 7 & RP_EACH_BYTE(1)) * 0x0102040810204080u >> 56; }

static inline uint64_t rp_equal(rp_vectors v, uint8_t byte) {
    uint64_t bits = 0;
    for (unsigned i = 0; i < 8; i++) {
        const uint64_t word = v.words[i] ^ RP_EACH_BYTE(byte);
        /* The highest bit of each byte that is zero, exactly (Hacker's Delight, 6-1). */
        const uint64_t zeros = ~(((word & RP_EACH_BYTE(0x7f)) + RP_EACH_BYTE(0x7f)) | word | RP_EACH_BYTE(0x7f));
        bits |= rp_gather(zeros) << 8 * i;
    }
    return bits;
}

static inline rp_vectors rp_with_bit5(rp_vectors v) {
    for (unsigned i = 0; i < 8; i++) v.words[i] |= RP_EACH_BYTE(0x20);
    return v;
}

static inline uint64_t rp_bit5(rp_vectors v) {
    uint64_t bits = 0;
    for (unsigned i = 0; i < 8; i++) bits |= rp_gather(v.words[i] << 2) << 8 * i;
    return bits;
}

#endif

typedef struct {
    uint64_t quotes, backslashes;
    uint64_t openings, closings; /* of both kinds */
    uint64_t bit5;               /* among brackets: the curly ones */
    uint64_t capitals;           /* N and I, with which NaN and Infinity begin */
} rp_masks;

static inline rp_masks rp_classify(const uint8_t *block) {
    /* `[` and `{`, `]` and `}` differ only in bit 5, and setting it makes no other byte one of these. */
    const rp_vectors v = rp_load(block), folded = rp_with_bit5(v);
    return (rp_masks){
        rp_equal(v, '"'), rp_equal(v, '\\'), rp_equal(folded, '{'),
        rp_equal(folded, '}'), rp_bit5(v), rp_equal(v, 'N') | rp_equal(v, 'I'),
    };
}

/* The same with half the instructions, for machines with AVX2, which is detected at run time. */
#if defined(__x86_64__) && defined(__GNUC__) && defined(__SSE2__) && !defined(RP_PLAIN) && !defined(RP_BASELINE)
#define RP_HAS_AVX2
#include <immintrin.h>

#define RP_AVX2 __attribute__((target("avx2,bmi,popcnt")))

RP_AVX2 static inline uint64_t rp_bits_avx2(__m256i low, __m256i high) {
    return (uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
}

RP_AVX2 static inline uint64_t rp_equal_avx2(__m256i low, __m256i high, uint8_t byte) {
    const __m256i wanted = _mm256_set1_epi8((char)byte);
    return rp_bits_avx2(_mm256_cmpeq_epi8(low, wanted), _mm256_cmpeq_epi8(high, wanted));
}

RP_AVX2 static inline rp_masks rp_classify_avx2(const uint8_t *block) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)block);
    const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(block + 32));
    const __m256i bit5 = _mm256_set1_epi8(0x20);
    const __m256i folded_low = _mm256_or_si256(low, bit5), folded_high = _mm256_or_si256(high, bit5);
    return (rp_masks){
        rp_equal_avx2(low, high, '"'),
        rp_equal_avx2(low, high, '\\'),
        rp_equal_avx2(folded_low, folded_high, '{'),
        rp_equal_avx2(folded_low, folded_high, '}'),
        rp_bits_avx2(_mm256_slli_epi16(low, 2), _mm256_slli_epi16(high, 2)),
        rp_equal_avx2(low, high, 'N') | rp_equal_avx2(low, high, 'I'),
    };
}
#endif

/* Index of the lowest bit set; the mask must not be 0. */
static inline unsigned rp_lowest(uint64_t bits) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(bits);
#else
    unsigned place = 0;
    for (; !(bits & 1); bits >>= 1) place++;
    return place;
#endif
}

/* Index of the highest bit set; the mask must not be 0. */
static inline unsigned rp_highest(uint64_t bits) {
#if defined(__GNUC__)
    return 63 - (unsigned)__builtin_clzll(bits);
#else
    unsigned place = 63;
    for (; !(bits >> 63); bits <<= 1) place--;
    return place;
#endif
}

/* Number of bits set, without the popcnt instruction, which baseline x86-64 lacks (H. S. Warren, Hacker's
 * Delight, 2nd edition, figure 5-2). */
static inline uint64_t rp_count(uint64_t bits) {
    bits -= bits >> 1 & 0x5555555555555555u;
    bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return bits * 0x0101010101010101u >> 56;
}

/* Each bit becomes the parity of itself and all below, so that a mask of quotes becomes a mask of what they enclose
 * (G. Langdale and D. Lemire, Parsing gigabytes of JSON per second, VLDB Journal 28, 2019, section 3.1.1). */
static inline uint64_t rp_prefix_xor(uint64_t bits) {
    bits ^= bits << 1;
    bits ^= bits << 2;
    bits ^= bits << 4;
    bits ^= bits << 8;
    bits ^= bits << 16;
    bits ^= bits << 32;
    return bits;
}

#endif
