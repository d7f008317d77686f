// Group normalisation of a bfloat16 feature map whose channels lie beside each other, with what surrounds it in a
// residual block: out = silu(norm(x + addend) * weight + bias), addend and silu if asked for.
//
// Sums are taken over runs of kRun pixels, in float32, and then over the runs, in double, always in the same order: the
// result is the same for any number of threads. (torch's kernel for this layout sums by thread, from 1024 pixels on.)
// Called only where latentgen_kernels_run_here() says so; see attention.cpp on the instructions and on OpenMP.

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace {

constexpr long kRun = 64;

INLINE __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp2(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)))));
}

struct Map {  // (B, pixels, channels)
  const bf16 *x, *addend;  // addend (B, channels) or null
  long pixels, channels, groups, runs;
};

// Sums of one run and of its squares, for each group: sums (groups, 2). `scratch` holds 2 x channels floats.
TARGET void sum_run(const Map& map, long b, long run, float* scratch, double* sums) {
  const long first = run * kRun, end = std::min(first + kRun, map.pixels), channels = map.channels;
  for (long c = 0; c < channels; c += kLanes) {
    const __m512 addend = map.addend ? widen(map.addend + b * channels + c) : _mm512_setzero_ps();
    __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
    for (long pixel = first; pixel < end; ++pixel) {
      const __m512 value = _mm512_add_ps(widen(map.x + (b * map.pixels + pixel) * channels + c), addend);
      sum = _mm512_add_ps(sum, value);
      square = _mm512_fmadd_ps(value, value, square);
    }
    _mm512_storeu_ps(scratch + c, sum);
    _mm512_storeu_ps(scratch + channels + c, square);
  }
  const long width = channels / map.groups;
  for (long group = 0; group < map.groups; ++group)
    for (int which = 0; which < 2; ++which) {
      double total = 0;
      for (long c = group * width; c < (group + 1) * width; ++c) total += scratch[which * channels + c];
      sums[2 * group + which] = total;
    }
}

// What a channel is multiplied by and what is added then: from the sums of all runs of a picture, (runs, groups, 2).
TARGET void factors(const Map& map, long b, const double* sums, const float* weight, const float* bias, float eps,
                    float* factor, float* shift) {
  const long width = map.channels / map.groups;
  for (long group = 0; group < map.groups; ++group) {
    double sum = 0, square = 0;
    for (long run = 0; run < map.runs; ++run) {
      sum += sums[(run * map.groups + group) * 2];
      square += sums[(run * map.groups + group) * 2 + 1];
    }
    const double count = double(map.pixels) * width, mean = sum / count;
    const double deviation = std::sqrt(std::max(square / count - mean * mean, 0.0) + eps);
    for (long c = group * width; c < (group + 1) * width; ++c) {
      float addend = 0;
      if (map.addend) {
        const uint32_t bits = uint32_t(map.addend[b * map.channels + c]) << 16;
        std::memcpy(&addend, &bits, sizeof addend);
      }
      factor[c] = float(weight[c] / deviation);
      shift[c] = float(bias[c] + (addend - mean) * (weight[c] / deviation));
    }
  }
}

template <bool Silu>
TARGET void apply_run(const Map& map, long b, long run, const float* factor, const float* shift, bf16* out) {
  const long end = std::min((run + 1) * kRun, map.pixels);
  for (long pixel = run * kRun; pixel < end; ++pixel) {
    const long at = (b * map.pixels + pixel) * map.channels;
    for (long c = 0; c < map.channels; c += kLanes) {
      __m512 value = _mm512_fmadd_ps(widen(map.x + at + c), _mm512_loadu_ps(factor + c), _mm512_loadu_ps(shift + c));
      if (Silu) value = silu(value);
      store(out + at + c, value);
    }
  }
}

}  // namespace

// x and out (B, pixels, channels) bfloat16, addend (B, channels) bfloat16 or null, weight and bias (channels) float32;
// channels a multiple of 16 and of groups. Returns 0, or 1 if there was no memory for the sums.
extern "C" int latentgen_group_norm(const bf16* x, const bf16* addend, const float* weight, const float* bias,
                                    bf16* out, long batch, long pixels, long channels, long groups, float eps,
                                    int with_silu) {
  const Map map = {x, addend, pixels, channels, groups, (pixels + kRun - 1) / kRun};
  double* sums = static_cast<double*>(std::malloc(sizeof(double) * batch * map.runs * groups * 2));
  float* factor = static_cast<float*>(std::malloc(sizeof(float) * batch * channels * 2));
  int failed = !sums || !factor;
#pragma omp parallel reduction(| : failed) if (batch * pixels * channels > 1 << 15)
  {
    float* scratch = static_cast<float*>(std::malloc(sizeof(float) * channels * 2));
    failed |= !scratch;
    const bool works = sums && factor && scratch;
#pragma omp for schedule(static)
    for (long task = 0; task < batch * map.runs; ++task)
      if (works) sum_run(map, task / map.runs, task % map.runs, scratch, sums + task * groups * 2);
#pragma omp for schedule(static)
    for (long b = 0; b < batch; ++b)
      if (works)
        factors(map, b, sums + b * map.runs * groups * 2, weight, bias, eps, factor + 2 * b * channels,
                factor + (2 * b + 1) * channels);
#pragma omp for schedule(static)
    for (long task = 0; task < batch * map.runs; ++task) {
      const long b = task / map.runs, run = task % map.runs;
      const float *f = factor + 2 * b * channels, *s = f + channels;
      if (works) (with_silu ? apply_run<true> : apply_run<false>)(map, b, run, f, s, out);
    }
    std::free(scratch);
  }
  std::free(sums);
  std::free(factor);
  return failed;
}
