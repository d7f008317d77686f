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

// 2^x: a polynomial on the fraction in [-1/2, 1/2], relative error below 3e-6, then the exponent. Below -126 it is 2^-126.
INLINE __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.f), x);  // in this order NaN stays NaN
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.33336e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61813e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55041e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402265e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, whole);
}
