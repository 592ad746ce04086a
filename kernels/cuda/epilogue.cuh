// From accumulators to the output: scales, bias, conversion, transposition, store.
//
// Of its 64 x TOKENS tile, thread t of a warpgroup holds, for j = 0 ... TOKENS / 8 - 1, channels
// 16 (t / 32) + (t % 32) / 4 + {0, 8} of tokens 8 j + 2 (t % 4) + {0, 1}: sums[4 j + 2 c + x].

#if SCALED
typedef u16 Out;
#else
typedef Accumulator Out;
#endif

// Two neighbouring tokens as two 16-bit values, the first in the low half.
__device__ __forceinline__ u32 round_pair(float first, float second) {
  u32 pair;
#if OUT_FP16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
  return pair;
}

__device__ __forceinline__ float widen(u16 value) {
  float wide;
#if OUT_FP16
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
#else
  asm("{.reg .b16 zero; mov.b16 zero, 0; mov.b32 %0, {zero, %1};}" : "=f"(wide) : "h"(value));
#endif
  return wide;
}

struct Epilogue {
  const TensorMap* out_map;
  Out* out;              // [m, n] row-major
  const float* w_scale;  // [n]
  const float* x_scale;  // [m]
  const Out* bias;       // [n] or null
  u32 boxes;             // shared: STORE_BOXES times STORE_TOKENS rows of 64 channels
  u32 scales;            // shared: SCALE_BYTES of token scales
  u32 thread, barrier;   // of the warpgroup
  u64 policy;

  // What the two channels of this thread are multiplied by and what is added to them.
  struct Channels {
    float scale[2], shift[2];
  };

  // Ask for the scales of a tile; those of the tokens come while it is computed. They are stored so
  // that a thread's four of two groups of eight tokens are neighbours.
  __device__ Channels fetch_scales(const Problem& problem, int channel, int token) const {
    Channels channels{};
#if SCALED
    for (u32 i = thread; i < TOKENS; i += 128) {
      const int row = token + static_cast<int>(i);
      const u32 place = i / 16 * 16 + i % 8 / 2 * 4 + i / 8 % 2 * 2 + i % 2;
      copy_word(scales + 4 * place, x_scale + (row < problem.m ? row : 0), row < problem.m);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int n = min(channel + static_cast<int>(thread / 32 * 16 + thread % 32 / 4 + 8 * c),
                        problem.n - 1);
      channels.scale[c] = load_global(w_scale + n);
      channels.shift[c] = bias ? widen(load_global(bias + n)) : 0.0f;
    }
#endif
    return channels;
  }

#if SCALED
  // Two tokens of one channel, of accumulators of group `j`.
  template <int COUNT>
  static __device__ u32 pair_of(const Accumulator (&sums)[COUNT], int j, int c,
                                const Channels& channels, float first, float second) {
    return round_pair(fmaf(static_cast<float>(sums[4 * j + 2 * c]) * first, channels.scale[c],
                           channels.shift[c]),
                      fmaf(static_cast<float>(sums[4 * j + 2 * c + 1]) * second, channels.scale[c],
                           channels.shift[c]));
  }

  // Store 8 GROUPS tokens, from the `first` of the tile on: through shared memory, box by box, since
  // the L2 cache wants full lines.
  template <int GROUPS>
  __device__ void store(const Problem& problem, const Accumulator (&sums)[4 * GROUPS],
                        const Channels& channels, int channel, int token, int first) const {
    constexpr int BOX_GROUPS = STORE_TOKENS / 8;
    static_assert(GROUPS % BOX_GROUPS == 0, "boxes fill the tile");
    const u32 lane = thread % 32, warp = thread / 32;
    // Rows of 128 bytes whose 16-byte pieces are permuted by the row, as the copy engine's 128-byte
    // swizzle wants them: no bank is met twice.
    const u32 piece = 2 * warp + lane / 8 % 2, row = lane % 8 + lane / 16 * 8;
    const u32 target = boxes + row * 128 + (piece ^ row % 8) * 16;
    // Past this barrier the scales are here and all boxes of the tile before are free.
    copy_words_wait();
    if (thread == 0) store_wait_read<0>();
    warpgroup_sync(barrier);
    const u32 factors = scales + 4 * first + 16 * (lane % 4);
#pragma unroll
    for (int part = 0; part < GROUPS / BOX_GROUPS; ++part) {
      const u32 box = part % STORE_BOXES * STORE_TOKENS * 128;
      const int at = token + first + part * STORE_TOKENS;
      // A box that is not stored would not count below as one that is still to be read.
      if (at >= problem.m || channel >= problem.n) break;
#pragma unroll
      for (int i = 0; i + 1 < BOX_GROUPS; i += 2) {
        const int j = part * BOX_GROUPS + i;
        const float4 x = load_quad(factors + 32 * j);
        store_transposed(target + box + i * 1024, pair_of(sums, j, 0, channels, x.x, x.y),
                         pair_of(sums, j, 1, channels, x.x, x.y),
                         pair_of(sums, j + 1, 0, channels, x.z, x.w),
                         pair_of(sums, j + 1, 1, channels, x.z, x.w));
      }
      if constexpr (BOX_GROUPS == 1) {
        // Eight tokens: half of a group of sixteen, as the scales are stored.
        const u32 half = first / 8 + part;
        const float2 x = load_pair(scales + 64 * (half / 2) + 8 * (half % 2) + 16 * (lane % 4));
        store_transposed(target + box, pair_of(sums, part, 0, channels, x.x, x.y),
                         pair_of(sums, part, 1, channels, x.x, x.y));
      }
      // Past this barrier the box after this one is free.
      if (thread == 0) store_wait_read<STORE_BOXES - 2>();
      fence_async();
      warpgroup_sync(barrier);
      if (thread == 0) store_box(out_map, channel, at, boxes + box, policy);
    }
  }
#else
  // Store raw sums straight from registers: eight lanes fill a sector.
  template <int GROUPS>
  __device__ void store(const Problem& problem, const Accumulator (&sums)[4 * GROUPS],
                        const Channels&, int channel, int token, int first) const {
    const int n = channel + static_cast<int>(thread / 32 * 16 + thread % 32 / 4);
    const int m = token + first + static_cast<int>(2 * (thread % 4));
    Out* to = out + static_cast<i64>(m) * problem.n + n;
    const i64 row = problem.n;
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; ++i) {
      const int at = 8 * (i / 4) + i % 2, c = i / 2 % 2;
      if (m + at < problem.m && n + 8 * c < problem.n) to[at * row + 8 * c] = sums[i];
    }
  }
#endif
};

// A cluster that splits K: every block sends each other one its sums of the tokens that are the
// other's to finish, itself included, and adds what it gets in the order of K.
struct SplitSum {
  static constexpr int GROUPS = TOKENS / 8 / CLUSTER_K;
  u32 came, read;  // barriers: sums are here, sums may be overwritten everywhere
  u32 inbox;       // shared: from each block 16 bytes a thread and group
  u32 rank, thread, lane;
  u32 parity;

  __device__ void reduce(const Accumulator (&sums)[TOKENS / 2], Accumulator (&whole)[4 * GROUPS]) {
    if (thread == 0) barrier_expect(came, SUM_BYTES);
    barrier_wait(read, parity ^ 1);
    const u32 place = inbox + rank * (GROUPS * 2048) + 16 * thread;
#pragma unroll
    for (int other = 0; other < CLUSTER_K; ++other) {
      const u32 to = shared_at(place, other), barrier = shared_at(came, other);
#pragma unroll
      for (int j = 0; j < GROUPS; ++j) {
        const int at = 4 * (other * GROUPS + j);
        send_quad(to + j * 2048, bits(sums[at]), bits(sums[at + 1]), bits(sums[at + 2]),
                  bits(sums[at + 3]), barrier);
      }
    }
    barrier_wait_cluster(came, parity);
    parity ^= 1;
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; ++i) whole[i] = 0;
#pragma unroll
    for (int other = 0; other < CLUSTER_K; ++other) {
#pragma unroll
      for (int j = 0; j < GROUPS; ++j) {
        const float4 quad = load_quad(inbox + (other * GROUPS + j) * 2048 + 16 * thread);
        whole[4 * j] += accumulator(quad.x);
        whole[4 * j + 1] += accumulator(quad.y);
        whole[4 * j + 2] += accumulator(quad.z);
        whole[4 * j + 3] += accumulator(quad.w);
      }
    }
    __syncwarp();
    if (lane < CLUSTER_K) barrier_arrive_at(read, lane);
  }

  static __device__ u32 bits(float value) { return __float_as_uint(value); }
  static __device__ u32 bits(int value) { return static_cast<u32>(value); }
  static __device__ Accumulator accumulator(float value) {
#if FP8
    return value;
#else
    return __float_as_int(value);
#endif
  }
};
