/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys as words of 64 bits, their hash, and the search of a set's tags: what every look-up does.
 *
 * NH: Black et al., "UMAC: fast and secure message authentication" (1999), section 3, with words
 * of 64 bits as in VMAC (Krovetz and Dai, draft-krovetz-vmac-01, section 3.3): for key words drawn
 * at random, two different messages of a length have equal sums with probability 2^-64, whoever
 * chose them. Two odd random multipliers then spread the sum over the bits that pick set and tag.
 */
#ifndef VEDETTE_HASHING_H
#define VEDETTE_HASHING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define VEDETTE_NH_WORDS 64

/*
 * Begin to load a line. A prefetch alone counts as no effect: GCC takes a function that does
 * nothing else for a pure one, and drops its calls. The empty assembly is an effect.
 */
static inline void vedette_prefetch(const void *address)
{
	__builtin_prefetch(address);
	__asm__ volatile("" : : "r"(address));
}

/* Modulo 2^64 and 2^128 on purpose. count: 1 to VEDETTE_NH_WORDS; an odd one ends in a zero. */
static inline uint64_t vedette_nh(const uint64_t *key, const uint64_t *words, uint32_t count)
{
	unsigned __int128 sum = count;
	uint64_t mixed;
	uint32_t i;

	for (i = 0; i + 1 < count; i += 2)
		sum += (unsigned __int128)(words[i] + key[i]) * (words[i + 1] + key[i + 1]);
	if (i < count)
		sum += (unsigned __int128)(words[i] + key[i]) * key[i + 1];
	mixed = (uint64_t)sum * key[VEDETTE_NH_WORDS] +
		(uint64_t)(sum >> 64) * key[VEDETTE_NH_WORDS + 1];
	return mixed ^ mixed >> 32;
}

static inline uint32_t vedette_same(const uint64_t *left, const uint64_t *right, uint32_t count)
{
	uint64_t different = 0;
	uint32_t i = 0;

#ifdef __SSE2__
	__m128i equal = _mm_set1_epi8(-1);

	for (; i + 2 <= count; i += 2)
		equal = _mm_and_si128(equal, _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(left + i)),
							    _mm_loadu_si128((const __m128i *)(right + i))));
	different = (uint64_t)(_mm_movemask_epi8(equal) ^ 0xFFFF);
#endif
	for (; i < count; i++)
		different |= left[i] ^ right[i];
	return different == 0;
}

/* Bit by way of the tags that are equal. */
static inline uint32_t vedette_ways(const uint32_t *tags, uint32_t tag)
{
#ifdef __SSE2__
	__m128i wanted = _mm_set1_epi32((int)tag);
	__m128i low = _mm_cmpeq_epi32(_mm_load_si128((const __m128i *)tags), wanted);
	__m128i high = _mm_cmpeq_epi32(_mm_load_si128((const __m128i *)(tags + 4)), wanted);

	return (uint32_t)(_mm_movemask_ps(_mm_castsi128_ps(low)) |
			  _mm_movemask_ps(_mm_castsi128_ps(high)) << 4);
#else
	uint32_t found = 0;
	int way;

	for (way = 0; way < 8; way++)
		found |= (uint32_t)(tags[way] == tag) << way;
	return found;
#endif
}

/* A string as a key: two bytes of label, the string, zeros up to the last word. */
static inline uint32_t vedette_words(size_t size)
{
	return (uint32_t)((size + 2 + 7) / 8);
}

static inline void vedette_key(uint64_t *words, uint32_t count, const uint8_t *text, size_t size,
			       uint16_t label)
{
	words[vedette_words(size) - 1] = 0;
	memset(words + vedette_words(size), 0, 8 * (count - vedette_words(size)));
	memcpy(words, &label, 2);
	memcpy((uint8_t *)words + 2, text, size);
}

/*
 * The same without a branch on the size, for 8 * count - 2 bytes at the most: reads the two bytes
 * before the text and what lies behind it, up to text + 8 * count - 2. count: at most 16.
 */
static const struct {
	uint8_t ones[128];
	uint8_t zeros[128];
} vedette_mask = {{
#define VEDETTE_FF 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255
	VEDETTE_FF, VEDETTE_FF, VEDETTE_FF, VEDETTE_FF, VEDETTE_FF, VEDETTE_FF, VEDETTE_FF, VEDETTE_FF
#undef VEDETTE_FF
}, {0}};

static inline void vedette_key_masked(uint64_t *words, uint32_t count, const uint8_t *text,
				      size_t size, uint16_t label)
{
	const uint8_t *from = text - 2;
	const uint8_t *mask = (const uint8_t *)&vedette_mask + 126 - size;
	uint32_t i;

	for (i = 0; i < count; i++) {
		uint64_t word, kept;

		memcpy(&word, from + 8 * i, 8);
		memcpy(&kept, mask + 8 * i, 8);
		/* In a register: a store of two bytes would hold up the load of the whole word. */
		words[i] = i == 0 ? (word & kept & ~(uint64_t)0xFFFF) | label : word & kept;
	}
}

#endif
