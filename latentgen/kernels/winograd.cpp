// A 3x3 convolution of a bfloat16 map whose channels lie beside each other, with 16 products for every 2x2 pixels
// instead of 36: Winograd's minimal filtering F(2x2, 3x3), arXiv:1509.09308, section 4.
//
//   V = B^T d B for every tile d of 4x4 pixels, U = G g G^T for every kernel g,
//   M = sum over the channels of U V (16 matrix products),   out = A^T M A + bias + residual.
//
// U is made at every call, of as many kernels as an L3 cache of 32 MB holds beside the map: the weights are in memory
// once and as they are. Then a thread takes some tiles at a time, whose V and M stay in its L2 cache. Sums are float32; V and U are rounded
// to bfloat16, and so is the output, once. A tile's result depends on nothing but itself and the weights, in one order:
// it is the same for any number of threads, tiles and pictures.
//
// Called only where latentgen_kernels_run_here() says so; see attention.cpp on the instructions and on OpenMP.

#include "vectors.h"

#include <cpuid.h>
#include <omp.h>

#include <algorithm>
#include <type_traits>

namespace {

constexpr int kPlaces = 16;  // of a tile
constexpr int kTiles = 6;    // of a product: 6 x 4 accumulators and 5 operands of the 32 registers
constexpr int kWidth = 4;    // registers of kernels at a time: a block
constexpr long kBlock = kWidth * kLanes;
constexpr long kMostSixes = 4;  // of a group of tiles, which meet the same U one after the other
constexpr long kMostTiles = kMostSixes * kTiles;
constexpr long kUsual = 8 << 20;  // numbers of U at a time,
constexpr long kFewer = 4 << 20;  // where V has not more than
constexpr long kKept = 6 << 20;   // and is kept for all blocks
constexpr long kPieces = 8;       // in which the U of a block is made
constexpr long kTasks = 4;        // of a thread at least, where there are so many

long divide_up(long value, long by) { return (value + by - 1) / by; }

// x (batch, height >> shift, width >> shift, into), weights (blocks, into, 9, 64), out and residual (batch, height,
// width, outs). With a shift of 1 every pixel of x stands for 2x2.
struct Map {
  const bf16 *x, *weights, *bias, *residual;
  bf16* out;
  long batch, height, width, into, outs, shift;
  long rows() const { return (height + 1) / 2; }
  long columns() const { return (width + 1) / 2; }
  long tiles() const { return batch * rows() * columns(); }
  // Tiles six by six, and the groups over which they are spread evenly.
  long sixes() const { return divide_up(tiles(), kTiles); }
  long groups() const { return divide_up(sixes(), kMostSixes); }
  long first(long group) const { return sixes() * group / groups() * kTiles; }
  long blocks() const { return divide_up(outs, kBlock); }
  // Whether V of the whole map is kept for all blocks.
  bool keeps_v() const { return sixes() * kTiles * kPlaces * into <= kKept; }
  // Blocks whose U is in memory together.
  long blocks_at_a_time() const {
    return std::clamp((keeps_v() ? kFewer : kUsual) / (kPlaces * kBlock * into), 1L, blocks());
  }
  long u_bytes() const { return blocks_at_a_time() * kBlock * kPlaces * into * long(sizeof(bf16)); }
  long v_bytes() const { return (keeps_v() ? sixes() : kMostSixes) * kTiles * kPlaces * into * long(sizeof(bf16)); }
  long m_bytes() const { return kMostTiles * kPlaces * kBlock * long(sizeof(float)); }
};

struct Tile {
  long b, y, x;  // its picture and its first pixel
  Tile(const Map& map, long index)
      : b(index / (map.rows() * map.columns())),
        y(index / map.columns() % map.rows() * 2),
        x(index % map.columns() * 2) {}
};

// B^T d of four vectors, d 4x4 at `stride`.
INLINE void transform_input(__m512* d, int stride) {
  const __m512 a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride];
  d[0] = _mm512_sub_ps(a, c);
  d[stride] = _mm512_add_ps(b, c);
  d[2 * stride] = _mm512_sub_ps(c, b);
  d[3 * stride] = _mm512_sub_ps(b, e);
}

// V of one tile, at place p and channel c: to[p * kTiles * into + c].
TARGET void read_tile(const Map& map, long index, bf16* to) {
  const Tile tile(map, index);
  const bf16* pixels[kPlaces];
  for (int i = 0; i < kPlaces; ++i) {
    const long y = tile.y + i / 4 - 1, x = tile.x + i % 4 - 1;
    const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
    const long row = tile.b * (map.height >> map.shift) + (y >> map.shift);
    pixels[i] = inside ? map.x + (row * (map.width >> map.shift) + (x >> map.shift)) * map.into : nullptr;
  }
  for (long c = 0; c < map.into; c += kLanes) {
    __m512 d[kPlaces];
    for (int i = 0; i < kPlaces; ++i) d[i] = pixels[i] ? widen(pixels[i] + c) : _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) transform_input(d + i, 4);
    for (int i = 0; i < 4; ++i) transform_input(d + 4 * i, 1);
    for (int i = 0; i < kPlaces; ++i) store(to + i * kTiles * map.into + c, d[i]);
  }
}

// G g of three vectors at `from` with `stride`: four at `to` with `step`.
INLINE void transform_kernel(const __m512* from, int stride, __m512* to, int step) {
  const __m512 half = _mm512_set1_ps(.5f);
  const __m512 ends = _mm512_mul_ps(_mm512_add_ps(from[0], from[2 * stride]), half);
  const __m512 middle = _mm512_mul_ps(from[stride], half);
  to[0] = from[0];
  to[step] = _mm512_add_ps(ends, middle);
  to[2 * step] = _mm512_sub_ps(ends, middle);
  to[3 * step] = from[2 * stride];
}

// U of 16 kernels, their nine weights of one channel lying `stride` apart.
INLINE void transform_kernels(const bf16* weights, long stride, __m512* u) {
  __m512 g[9], rows[12];
  for (int i = 0; i < 9; ++i) g[i] = widen(weights + i * stride);
  for (int i = 0; i < 3; ++i) transform_kernel(g + i, 3, rows + i, 3);
  for (int i = 0; i < 4; ++i) transform_kernel(rows + 3 * i, 1, u + 4 * i, 1);
}

// U of `count` kernels from `first` on, of channels c to end: [place][into / 2][count][2].
TARGET void read_kernels(const Map& map, long first, long count, long c, long end, bf16* to) {
  const bf16* weights = map.weights + 9 * first * map.into;
  for (; c < end; c += 2)
    for (long n = 0; n < count; n += kLanes) {
      __m512 even[kPlaces], odd[kPlaces];
      transform_kernels(weights + 9 * c * count + n, count, even);
      transform_kernels(weights + 9 * (c + 1) * count + n, count, odd);
      for (int p = 0; p < kPlaces; ++p) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even[p]));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd[p]));
        _mm512_store_si512(to + (p * map.into + c) * count + 2 * n,
                           _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
}

// Six tiles times `Registers` x 16 kernels at one place: v (6, into), u (into / 2, Registers x 16, 2) -> m.
template <int Registers>
INLINE void multiply(const bf16* v, const bf16* u, long into, float* m) {
  __m512 sum[kTiles][Registers];
  for (auto& row : sum)
    for (auto& each : row) each = _mm512_setzero_ps();
  for (long c = 0; c < into; c += 2) {
    __m512bh kernel[Registers];
    for (int j = 0; j < Registers; ++j) kernel[j] = load(u + (c * Registers + 2 * j) * kLanes);
    for (int i = 0; i < kTiles; ++i) {
      const __m512bh pixel = broadcast_pair(v + i * into + c);
      for (int j = 0; j < Registers; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pixel, kernel[j]);
    }
  }
  for (int i = 0; i < kTiles; ++i)
    for (int j = 0; j < Registers; ++j) _mm512_store_ps(m + (i * Registers + j) * kLanes, sum[i][j]);
}

// A^T m A of one tile for 16 kernels from `n` on, m[p * stride]; with bias and residual into the map.
INLINE void write_tile(const Map& map, const Tile& tile, long n, const float* m, long stride) {
  __m512 rows[2][4], out[2][2];
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_load_ps(m + i * stride), b = _mm512_load_ps(m + (4 + i) * stride),
                 c = _mm512_load_ps(m + (8 + i) * stride), e = _mm512_load_ps(m + (12 + i) * stride);
    rows[0][i] = _mm512_add_ps(a, _mm512_add_ps(b, c));
    rows[1][i] = _mm512_sub_ps(_mm512_sub_ps(b, c), e);
  }
  const __m512 bias = map.bias ? widen(map.bias + n) : _mm512_setzero_ps();
  for (int i = 0; i < 2; ++i) {
    const __m512* row = rows[i];
    out[i][0] = _mm512_add_ps(_mm512_add_ps(row[0], bias), _mm512_add_ps(row[1], row[2]));
    out[i][1] = _mm512_add_ps(_mm512_sub_ps(row[1], row[2]), _mm512_sub_ps(bias, row[3]));
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      if (tile.y + i >= map.height || tile.x + j >= map.width) continue;
      const long at = ((tile.b * map.height + tile.y + i) * map.width + tile.x + j) * map.outs + n;
      store(map.out + at, map.residual ? _mm512_add_ps(out[i][j], widen(map.residual + at)) : out[i][j]);
    }
}

// One group of tiles, v (products, place, 6, into), with `Registers` x 16 kernels from `first` on.
template <int Registers>
INLINE void convolve_group(const Map& map, long tile, long count, const bf16* v, const bf16* u, long first, float* m) {
  constexpr long width = Registers * kLanes;
  for (long place = 0; place < kPlaces; ++place)
    for (long i = 0; i < count; i += kTiles)
      multiply<Registers>(v + (i * kPlaces + place * kTiles) * map.into, u + place * map.into * width, map.into,
                          m + (place * kMostTiles + i) * width);
  for (long i = 0; i < count; ++i) {
    const Tile at(map, tile + i);
    for (long n = 0; n < width; n += kLanes) write_tile(map, at, first + n, m + i * width + n, kMostTiles * width);
  }
}

TARGET void convolve(const Map& map, long tile, long count, const bf16* v, const bf16* u, long first, long kernels,
                     float* m) {
  auto with = [&](auto registers) TARGET {
    convolve_group<decltype(registers)::value>(map, tile, count, v, u, first, m);
  };
  switch (kernels / kLanes) {
    case 4: with(std::integral_constant<int, 4>{}); break;
    case 3: with(std::integral_constant<int, 3>{}); break;
    case 2: with(std::integral_constant<int, 2>{}); break;
    default: with(std::integral_constant<int, 1>{});
  }
}

}  // namespace

extern "C" {

// Whether the CPU multiplies matrices in tiles (AMX): oneDNN's plain convolution is then faster by far.
int latentgen_has_amx() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}

// Bytes of workspace, which must begin at a multiple of 64.
long latentgen_winograd_workspace(long batch, long height, long width, long into, long outs, long threads) {
  const Map map = {nullptr, nullptr, nullptr, nullptr, nullptr, batch, height, width, into, outs, 0};
  return map.u_bytes() + (map.keeps_v() ? 1 : threads) * map.v_bytes() + threads * map.m_bytes();
}

// x (batch, height, width, into), weights: 64 kernels (the last ones fewer) after the other, (into, 9, 64) each; bias
// (outs) or null, residual or null and out (batch, height, width, outs); all bfloat16. One pixel of zeros is around x.
// Channels are multiples of 16. doubled: x (batch, height / 2, width / 2, into), each of whose pixels counts as 2x2.
void latentgen_winograd(const bf16* x, const bf16* weights, const bf16* bias, const bf16* residual, bf16* out,
                        long batch, long height, long width, long into, long outs, int doubled,
                        char* workspace, long threads) {
  const Map map = {x, weights, bias, residual, out, batch, height, width, into, outs, doubled};
  const long tiles = map.tiles(), groups = map.groups(), together = map.blocks_at_a_time();
  const bool keeps = map.keeps_v();
  bf16* const u = reinterpret_cast<bf16*>(workspace);
  char* const all_m = workspace + map.u_bytes();
  char* const all_v = all_m + threads * map.m_bytes();
#pragma omp parallel num_threads(int(threads))
  {
    const long mine = omp_get_thread_num(), running = omp_get_num_threads();
    float* m = reinterpret_cast<float*>(all_m + mine * map.m_bytes());
    bf16* v = reinterpret_cast<bf16*>(all_v + (keeps ? 0 : mine) * map.v_bytes());
    auto read_tiles = [&](long first, long end, bf16* to) {
      for (long i = 0; i < end - first; ++i)
        read_tile(map, first + i, to + (i / kTiles * kTiles * kPlaces + i % kTiles) * into);
    };
    if (keeps) {
#pragma omp for schedule(static) nowait
      for (long six = 0; six < map.sixes(); ++six)
        read_tiles(six * kTiles, std::min((six + 1) * kTiles, tiles), v + six * kTiles * kPlaces * into);
    }
    for (long start = 0; start < map.blocks(); start += together) {
      const long blocks = std::min(together, map.blocks() - start);
      auto kernels_of = [&](long block) { return std::min(kBlock, outs - (start + block) * kBlock); };
#pragma omp for schedule(static)
      for (long piece = 0; piece < blocks * kPieces; ++piece) {
        const long block = piece / kPieces, part = piece % kPieces;
        read_kernels(map, (start + block) * kBlock, kernels_of(block), into / 2 * part / kPieces * 2,
                     into / 2 * (part + 1) / kPieces * 2, u + block * kBlock * kPlaces * into);
      }
      // Runs of equal length over groups and blocks: a thread keeps V while it stays with a group.
      const long parts = std::clamp(divide_up(kTasks * running, groups), 1L, blocks), tasks = groups * parts;
      for (long task = tasks * mine / running, had = -1; task < tasks * (mine + 1) / running; ++task) {
        const long group = task / parts, part = task % parts;
        const long first = map.first(group), end = std::min(map.first(group + 1), tiles);
        if (!keeps && had != group) read_tiles(first, end, v);
        had = group;
        const bf16* from = v + (keeps ? first * kPlaces * into : 0);
        for (long block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
          convolve(map, first, end - first, from, u + block * kBlock * kPlaces * into, (start + block) * kBlock,
                   kernels_of(block), m);
      }
#pragma omp barrier
    }
  }
}
}
