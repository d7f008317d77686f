// What the kernels share: bfloat16 in and out of AVX-512 registers, and a power of two.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define INLINE TARGET static inline __attribute__((always_inline))

using bf16 = uint16_t;  // bits only: the arithmetic is the CPU's

constexpr int kLanes = 16;  // floats in a register
constexpr float kLog2E = 1.44269504f;

// 16 bfloat16 as float32, anywhere in memory.
INLINE __m512 widen(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

// 16 float32 as bfloat16, rounded, anywhere in memory.
INLINE void store(bf16* p, __m512 value) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(value)); }

// Operands of the dot-product instruction: 16 pairs at a multiple of 64 bytes, or one pair for all lanes.
INLINE __m512bh load(const bf16* p) { return (__m512bh)_mm512_load_si512(p); }

INLINE __m512bh broadcast_pair(const bf16* p) {
  int pair;
  std::memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// 2^x: a polynomial on the fraction in [0, 1), relative error below 8e-5 (a bfloat16 is rounded by 4e-3), and the exponent,
// which scalef takes from x itself. NaN stays NaN.
INLINE __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  __m512 p = _mm512_set1_ps(7.802448e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.260672e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.958335e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.999252e-1f));
  return _mm512_scalef_ps(p, x);
}
