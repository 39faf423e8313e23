// BLAKE3 of one 64 KiB chunk, sixteen of its 1 KiB leaves at a time, with
// AVX-512. The algorithm is that of the BLAKE3 paper (2020), §2; the keyed
// mode, and nothing but this one length. The tests, and newHasher at each
// start, compare it with the general implementation.

#include "wide_amd64.h"

#include <immintrin.h>
#include <string.h>

#define WIDE __attribute__((target("avx512f")))
#define INLINE static inline __attribute__((always_inline, target("avx512f")))

enum {
	CHUNK_START = 1,
	CHUNK_END = 2,
	PARENT = 4,
	ROOT = 8,
	KEYED_HASH = 16,
	LANES = 16,
	BLOCK = 64,
	LEAF = 1024,
	CV = 32,
};

static const uint32_t iv[4] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A};

int cairn_wide_supported(void) {
	return __builtin_cpu_supports("avx512f");
}

#define LO128(a, b) _mm512_shuffle_i32x4(a, b, 0x88)
#define HI128(a, b) _mm512_shuffle_i32x4(a, b, 0xdd)

// transpose turns 16 rows of 16 words into columns.
INLINE void transpose(__m512i v[16]) {
	__m512i a[16], b[16];
	for (int i = 0; i < 16; i += 4) {
		__m512i ab_lo = _mm512_unpacklo_epi32(v[i], v[i + 1]);
		__m512i ab_hi = _mm512_unpackhi_epi32(v[i], v[i + 1]);
		__m512i cd_lo = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]);
		__m512i cd_hi = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
		a[i] = _mm512_unpacklo_epi64(ab_lo, cd_lo);
		a[i + 1] = _mm512_unpackhi_epi64(ab_lo, cd_lo);
		a[i + 2] = _mm512_unpacklo_epi64(ab_hi, cd_hi);
		a[i + 3] = _mm512_unpackhi_epi64(ab_hi, cd_hi);
	}
	for (int i = 0; i < 4; i++) {
		b[i] = LO128(a[i], a[i + 4]);
		b[i + 4] = HI128(a[i], a[i + 4]);
		b[i + 8] = LO128(a[i + 8], a[i + 12]);
		b[i + 12] = HI128(a[i + 8], a[i + 12]);
	}
	for (int i = 0; i < 8; i++) {
		v[i] = LO128(b[i], b[i + 8]);
		v[i + 8] = HI128(b[i], b[i + 8]);
	}
}

#define ADD(a, b) _mm512_add_epi32(a, b)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define ROR(a, n) _mm512_ror_epi32(a, n)

#define G(a, b, c, d, x, y)              \
	do {                             \
		a = ADD(ADD(a, b), x);   \
		d = ROR(XOR(d, a), 16);  \
		c = ADD(c, d);           \
		b = ROR(XOR(b, c), 12);  \
		a = ADD(ADD(a, b), y);   \
		d = ROR(XOR(d, a), 8);   \
		c = ADD(c, d);           \
		b = ROR(XOR(b, c), 7);   \
	} while (0)

#define ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, sa, sb, sc, sd, se, sf) \
	do {                                                                 \
		G(v0, v4, v8, vc, m[s0], m[s1]);                             \
		G(v1, v5, v9, vd, m[s2], m[s3]);                             \
		G(v2, v6, va, ve, m[s4], m[s5]);                             \
		G(v3, v7, vb, vf, m[s6], m[s7]);                             \
		G(v0, v5, va, vf, m[s8], m[s9]);                             \
		G(v1, v6, vb, vc, m[sa], m[sb]);                             \
		G(v2, v7, v8, vd, m[sc], m[sd]);                             \
		G(v3, v4, v9, ve, m[se], m[sf]);                             \
	} while (0)

// compress runs the compression function in all lanes. The rounds' orders are
// the paper's permutation, applied again and again.
INLINE void compress(__m512i h[8], const __m512i m[16], __m512i counter, uint32_t flags) {
	__m512i v0 = h[0], v1 = h[1], v2 = h[2], v3 = h[3], v4 = h[4], v5 = h[5], v6 = h[6], v7 = h[7];
	__m512i v8 = _mm512_set1_epi32((int)iv[0]), v9 = _mm512_set1_epi32((int)iv[1]);
	__m512i va = _mm512_set1_epi32((int)iv[2]), vb = _mm512_set1_epi32((int)iv[3]);
	__m512i vc = counter, vd = _mm512_setzero_si512();
	__m512i ve = _mm512_set1_epi32(BLOCK), vf = _mm512_set1_epi32((int)flags);
	ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
	ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
	ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
	ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
	ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
	ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
	ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
	h[0] = XOR(v0, v8), h[1] = XOR(v1, v9), h[2] = XOR(v2, va), h[3] = XOR(v3, vb);
	h[4] = XOR(v4, vc), h[5] = XOR(v5, vd), h[6] = XOR(v6, ve), h[7] = XOR(v7, vf);
}

// hash16 hashes 16 inputs of so many blocks, stride bytes apart. Lane i counts
// as leaf first+i.
WIDE static void hash16(uint8_t out[LANES * CV], const uint8_t *in, size_t stride, int blocks,
                        const uint32_t key[8], __m512i counter, uint32_t flags, uint32_t start, uint32_t end) {
	__m512i h[8];
	for (int i = 0; i < 8; i++) {
		h[i] = _mm512_set1_epi32((int)key[i]);
	}
	for (int b = 0; b < blocks; b++) {
		__m512i m[16];
		for (int i = 0; i < LANES; i++) {
			m[i] = _mm512_loadu_si512(in + (size_t)i * stride + (size_t)b * BLOCK);
		}
		transpose(m);
		compress(h, m, counter, flags | (b == 0 ? start : 0) | (b == blocks - 1 ? end : 0));
	}
	__m512i o[16];
	for (int i = 0; i < 8; i++) {
		o[i] = h[i];
		o[i + 8] = _mm512_setzero_si512();
	}
	transpose(o);
	for (int i = 0; i < LANES; i++) {
		_mm256_storeu_si256((void *)(out + i * CV), _mm512_castsi512_si256(o[i]));
	}
}

WIDE void cairn_wide_chunk(uint8_t out[CV], const uint8_t in[CAIRN_WIDE_CHUNK], const uint8_t key[CV]) {
	uint32_t k[8];
	memcpy(k, key, sizeof k); // x86 is little-endian, as BLAKE3 is
	// Room for 16 parents even where only a few are left.
	uint8_t cv[LEAF + CAIRN_WIDE_CHUNK / LEAF * CV];
	const __m512i none = _mm512_setzero_si512();
	const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
	int n = CAIRN_WIDE_CHUNK / LEAF;
	memset(cv + n * CV, 0, LEAF);
	for (int i = 0; i < n; i += LANES) {
		hash16(cv + i * CV, in + (size_t)i * LEAF, LEAF, LEAF / BLOCK, k, ADD(lanes, _mm512_set1_epi32(i)),
		       KEYED_HASH, CHUNK_START, CHUNK_END);
	}
	for (; n > 1; n /= 2) {
		uint32_t flags = KEYED_HASH | PARENT | (n == 2 ? ROOT : 0);
		for (int i = 0; i < n / 2; i += LANES) {
			uint8_t up[LANES * CV];
			hash16(up, cv + i * 2 * CV, 2 * CV, 1, k, none, flags, 0, 0);
			memcpy(cv + i * CV, up, sizeof up);
		}
	}
	memcpy(out, cv, CV);
}
