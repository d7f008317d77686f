// Multi-head attention in bfloat16 on AVX512-BF16: out = softmax(scale * q k^T) v.
//
// One task is a head and a run of its queries. Its keys and values are first laid out for the dot-product instruction;
// then six queries at a time meet all keys, so their scores stay in the L2 cache and no (N, M) matrix is ever written.
// Scores, maxima and sums are float32; weights and output are rounded to bfloat16. A query's result depends on nothing
// but itself and the keys, in one order: it is the same for any number of threads.
//
// It is compiled for a baseline CPU with the instructions of the functions below turned on, and called only where
// latentgen_kernels_run_here() says so. It links no OpenMP of its own: the process's (torch's) is used, and so are
// its threads.

#include "vectors.h"

#include <algorithm>
#include <cstdlib>
#include <type_traits>

namespace {

constexpr int kQueries = 6;     // at a time: 6 x 4 accumulators and 4 operands fill the 32 registers
constexpr int kWidth = 4;       // registers of keys, or of value channels, at a time
constexpr float kMinusInfinity = -3e38f;

long round_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

// One head of a (B, N, heads, D) tensor: rows `stride` apart, D channels beside each other.
struct Rows {
  const bf16* first;
  long stride;
  const bf16* operator[](long row) const { return first + row * stride; }
};

// Buffers of one thread, freed with it.
struct Scratch {
  bf16 *keys, *values, *weights;
  float* scores;
  Scratch(long padded_keys, long padded_channels, long channels) {
    keys = allocate<bf16>(padded_keys * channels);
    values = allocate<bf16>(padded_keys * padded_channels);
    weights = allocate<bf16>(kQueries * padded_keys);
    scores = allocate<float>(kQueries * padded_keys);
  }
  ~Scratch() {
    for (void* buffer : {(void*)keys, (void*)values, (void*)weights, (void*)scores}) std::free(buffer);
  }
  bool complete() const { return keys && values && weights && scores; }

 private:
  template <typename T>
  static T* allocate(long count) {
    return static_cast<T*>(std::aligned_alloc(64, round_up(count * long(sizeof(T)), 64)));
  }
};

// Keys (M, D) -> [M / 16][D / 2][16][2]: the pairs that one instruction multiplies lie beside each other.
void pack_keys(Rows keys, long count, long padded, long channels, bf16* packed) {
  for (long m = 0; m < padded; ++m) {
    bf16* to = packed + m / kLanes * kLanes * channels + m % kLanes * 2;
    for (long d = 0; d < channels; d += 2) {
      int pair = 0;
      if (m < count) std::memcpy(&pair, keys[m] + d, sizeof pair);
      std::memcpy(to + d * kLanes, &pair, sizeof pair);
    }
  }
}

// Values (M, D) -> [M / 2][padded D][2].
void pack_values(Rows values, long count, long padded, long channels, long padded_channels, bf16* packed) {
  for (long m = 0; m < padded; m += 2) {
    bf16* to = packed + m * padded_channels;
    const bf16 *even = m < count ? values[m] : nullptr, *odd = m + 1 < count ? values[m + 1] : nullptr;
    for (long d = 0; d < padded_channels; ++d) {
      to[2 * d] = even && d < channels ? even[d] : 0;
      to[2 * d + 1] = odd && d < channels ? odd[d] : 0;
    }
  }
}

// Scores of six queries against `Registers` x 16 keys.
template <int Registers>
INLINE void score(const bf16* const* queries, const bf16* keys, long channels, float* scores, long stride) {
  __m512 sum[kQueries][Registers];
  for (auto& row : sum)
    for (auto& each : row) each = _mm512_setzero_ps();
  for (long d = 0; d < channels; d += 2) {
    __m512bh key[Registers];
    for (int j = 0; j < Registers; ++j) key[j] = load(keys + j * kLanes * channels + d * kLanes);
    for (int i = 0; i < kQueries; ++i) {
      const __m512bh query = broadcast_pair(queries[i] + d);
      for (int j = 0; j < Registers; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], query, key[j]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < Registers; ++j) _mm512_store_ps(scores + i * stride + j * kLanes, sum[i][j]);
}

// One query's scores -> weights exp(scale * (score - max)) in bfloat16; returns 1 / their sum.
INLINE float softmax(float* scores, bf16* weights, long count, long padded, float scale) {
  std::fill(scores + count, scores + padded, kMinusInfinity);
  __m512 largest = _mm512_set1_ps(kMinusInfinity);
  for (long m = 0; m < padded; m += kLanes) largest = _mm512_max_ps(largest, _mm512_load_ps(scores + m));
  const float base2 = scale * kLog2E;
  const __m512 factor = _mm512_set1_ps(base2), shift = _mm512_set1_ps(-_mm512_reduce_max_ps(largest) * base2);
  __m512 sum = _mm512_setzero_ps();
  for (long m = 0; m < padded; m += kLanes) {
    const __m512 weight = exp2(_mm512_fmadd_ps(_mm512_load_ps(scores + m), factor, shift));
    sum = _mm512_add_ps(sum, weight);
    _mm256_store_si256((__m256i*)(weights + m), (__m256i)_mm512_cvtneps_pbh(weight));
  }
  return 1.f / _mm512_reduce_add_ps(sum);
}

// `Registers` x 16 channels of six outputs: weights times values, divided by the weights' sum.
template <int Registers>
INLINE void weigh(const bf16* weights, long padded, const bf16* values, long padded_channels, const float* inverse,
                  bf16* const* out, long channel, long channels, int rows) {
  __m512 sum[kQueries][Registers];
  for (auto& row : sum)
    for (auto& each : row) each = _mm512_setzero_ps();
  for (long m = 0; m < padded; m += 2) {
    __m512bh value[Registers];
    for (int j = 0; j < Registers; ++j) value[j] = load(values + m * padded_channels + (channel + j * kLanes) * 2);
    for (int i = 0; i < kQueries; ++i) {
      const __m512bh weight = broadcast_pair(weights + i * padded + m);
      for (int j = 0; j < Registers; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], weight, value[j]);
    }
  }
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < Registers; ++j) {
      const long first = channel + j * kLanes, left = channels - first;
      if (left <= 0) break;
      const __mmask16 mask = left >= kLanes ? 0xffff : __mmask16((1u << left) - 1);
      const __m512 scaled = _mm512_mul_ps(sum[i][j], _mm512_set1_ps(inverse[i]));
      _mm256_mask_storeu_epi16(out[i] + first, mask, (__m256i)_mm512_cvtneps_pbh(scaled));
    }
}

struct Head {
  Rows queries;
  bf16* out;
  long out_stride, count, padded, channels, padded_channels;
  float scale;
};

// Queries first .. first + 5 of a head; fewer than six at the end, where the last one stands in for those missing.
TARGET void attend(const Head& head, long first, long end, const Scratch& scratch) {
  const int rows = int(std::min<long>(kQueries, end - first));
  const bf16* queries[kQueries];
  bf16* out[kQueries];
  float inverse[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    const long row = first + std::min(i, rows - 1);
    queries[i] = head.queries[row];
    out[i] = head.out + row * head.out_stride;
  }
  long m = 0;
  for (; m + kWidth * kLanes <= head.padded; m += kWidth * kLanes)
    score<kWidth>(queries, scratch.keys + m * head.channels, head.channels, scratch.scores + m, head.padded);
  for (; m < head.padded; m += kLanes)
    score<1>(queries, scratch.keys + m * head.channels, head.channels, scratch.scores + m, head.padded);

  for (int i = 0; i < kQueries; ++i)
    inverse[i] = softmax(scratch.scores + i * head.padded, scratch.weights + i * head.padded, head.count, head.padded,
                         head.scale);

  // Three registers rather than one at the end of five or ten: 80 and 160 channels are SD's.
  for (long channel = 0; channel < head.padded_channels;) {
    const long left = (head.padded_channels - channel) / kLanes;
    const long take = left == 5 || left == 6 ? 3 : std::min<long>(left, kWidth);
    auto weigh_some = [&](auto some) TARGET {
      weigh<decltype(some)::value>(scratch.weights, head.padded, scratch.values, head.padded_channels, inverse, out,
                                   channel, head.channels, rows);
    };
    switch (take) {
      case 4: weigh_some(std::integral_constant<int, 4>{}); break;
      case 3: weigh_some(std::integral_constant<int, 3>{}); break;
      case 2: weigh_some(std::integral_constant<int, 2>{}); break;
      default: weigh_some(std::integral_constant<int, 1>{});
    }
    channel += take * kLanes;
  }
}

}  // namespace

extern "C" {

// Where a tensor (B, rows, heads, D) lies: elements from one batch entry, row and head to the next; D is contiguous.
struct Layout {
  long batch, row, head;
};

int latentgen_kernels_run_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// q (B, N, heads, D), k and v (B, M, heads, D), out (B, N, heads, D), all bfloat16, D even, M and N at least 1.
// tasks: into how many runs the queries of a head are split at most, so that all threads have work.
// Returns 0, or 1 if there was no memory for the buffers.
int latentgen_attention(const bf16* q, Layout q_at, const bf16* k, Layout k_at, const bf16* v, Layout v_at, bf16* out,
                        Layout out_at, long batch, long heads, long queries, long keys, long channels, float scale,
                        long runs) {
  const long padded = round_up(keys, kLanes), padded_channels = round_up(channels, kLanes);
  const long run = round_up((queries + runs - 1) / runs, kQueries);
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    const Scratch scratch(padded, padded_channels, channels);
    failed = !scratch.complete();
    long packed = -1;  // the head whose keys and values lie in the scratch
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < batch * heads * runs; ++task) {
      const long which = task / runs, b = which / heads, h = which % heads;
      const long first = task % runs * run, end = std::min(first + run, queries);
      if (failed || first >= end) continue;
      if (packed != which) {
        pack_keys({k + b * k_at.batch + h * k_at.head, k_at.row}, keys, padded, channels, scratch.keys);
        pack_values({v + b * v_at.batch + h * v_at.head, v_at.row}, keys, padded, channels, padded_channels,
                    scratch.values);
        packed = which;
      }
      const Head head = {{q + b * q_at.batch + h * q_at.head, q_at.row},
                         out + b * out_at.batch + h * out_at.head,
                         out_at.row,
                         keys,
                         padded,
                         channels,
                         padded_channels,
                         scale};
      for (long n = first; n < end; n += kQueries) attend(head, n, end, scratch);
    }
  }
  return failed;
}
}
