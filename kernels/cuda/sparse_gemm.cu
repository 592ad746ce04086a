// D[m, n] = sum over K' of X[m, k] W[n, k], W 2:4, 8-bit; with scales, times w_scale[n] x_scale[m]
// plus bias[n]. Tensor cores multiply W (their sparse operand A, 64 channels a warpgroup) by X
// (operand B, TOKENS tokens). One warp copies, SLABS warpgroups multiply, STAGES stages lie between.
//
// Compiled once per configuration; the macros are listed in kernels/native/source.py.

// Core matrices of 8 rows x 16 bytes lie one after another: 128 bytes apart along K, 256 along N.
__device__ __forceinline__ u64 weight_descriptor(u32 address) {
  return (static_cast<u64>(256 >> 4) << 32) | (static_cast<u64>(128 >> 4) << 16) |
         ((address & 0x3FFFF) >> 4);
}

// Rows of 128 bytes with the 128-byte swizzle, groups of eight 1024 bytes apart.
__device__ __forceinline__ u64 token_descriptor(u32 address) {
  return (1ull << 62) | (static_cast<u64>(1024 >> 4) << 32) | (1ull << 16) |
         ((address & 0x3FFFF) >> 4);
}

struct Ring {
  u32 stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The copying thread. Blocks of a cluster that share tokens or weights fetch a part each.
__device__ __forceinline__ void produce(const Problem& problem, Schedule schedule, u32 base,
                                        u32 rank, const u8* weights, const TensorMap* x_map) {
  const u32 rank_w = rank % CLUSTER_W, rank_x = rank / CLUSTER_W % CLUSTER_X;
  // Blocks with the same tokens have consecutive ranks, those with the same channels have not.
  const u16 same_x = static_cast<u16>(((1u << CLUSTER_W) - 1) << (rank_x * CLUSTER_W));
  u16 same_w = 0;
  for (int i = 0; i < CLUSTER_X; ++i) same_w |= static_cast<u16>(1u << (i * CLUSTER_W + rank_w));
  const i64 slab_bytes = static_cast<i64>(problem.blocks) * BLOCK_BYTES;
  const int slabs = (problem.n + 63) / 64;
  // One tile of tokens reads a weight once: it need not stay in the L2 cache.
  const u64 w_policy = problem.tiles_x > 1 ? policy_evict_last() : policy_evict_first();
  const u64 x_policy = policy_evict_last();
  const u32 share = rank_x * (SLAB_BYTES / CLUSTER_X);
  const auto fetch_weights = [&](u32 stage, int slab, int step) {
    const u32 full = base + AT_FULL + 8 * stage;
    barrier_expect(full, W_BYTES + X_BYTES);
    const u32 to = base + AT_W + stage * W_BYTES + share;
#pragma unroll
    for (int s = 0; s < SLABS; ++s) {
      // Past the last slab there is nothing: its warpgroup computes the last one again, in vain.
      const u8* from = weights + min(slab + s, slabs - 1) * slab_bytes +
                       static_cast<i64>(step) * SLAB_BYTES + share;
      if constexpr (CLUSTER_X > 1) {
        copy_bytes(to + s * SLAB_BYTES, from, SLAB_BYTES / CLUSTER_X, full, w_policy, same_w);
      } else {
        copy_bytes(to + s * SLAB_BYTES, from, SLAB_BYTES, full, w_policy);
      }
    }
  };
  // Weights do not depend on the kernel before this one: the first stages are fetched at once.
  Tile tile;
  int ahead = 0;
  for (Schedule early = schedule; ahead < STAGES && early.next(tile);) {
    for (int step = early.begin; ahead < STAGES && step < early.end; ++step) {
      fetch_weights(ahead++, tile.channel / 64, step);
    }
  }
  wait_for_previous();
  Ring ring;
  while (schedule.next(tile)) {
    const int row = tile.token + static_cast<int>(rank_w) * (TOKENS / CLUSTER_W);
#pragma unroll 1
    for (int step = schedule.begin; step < schedule.end; ++step) {
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(base + AT_EMPTY + 8 * ring.stage, ring.parity ^ 1);
        fetch_weights(ring.stage, tile.channel / 64, step);
      }
      const u32 full = base + AT_FULL + 8 * ring.stage;
      const u32 to = base + AT_X + ring.stage * X_BYTES + rank_w * (X_PANEL / CLUSTER_W);
#pragma unroll
      for (int panel = 0; panel < BLOCKS / 2; ++panel) {
        const int column = (step * BLOCKS + 2 * panel) * 64;
        if constexpr (CLUSTER_W > 1) {
          copy_box(to + panel * X_PANEL, x_map, column, row, full, x_policy, same_x);
        } else {
          copy_box(to + panel * X_PANEL, x_map, column, row, full, x_policy);
        }
      }
      ring.advance();
    }
  }
  let_next_start();
}

// The metadata of one stage, and its multiplications.
struct Fragment {
  u32 metadata[BLOCKS];

  __device__ void load(u32 weights, u32 thread) {
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
      metadata[block] = load_word(weights + block * BLOCK_BYTES + BLOCK_VALUES + 4 * thread);
    }
  }

  __device__ void multiply(Accumulator (&sums)[TOKENS / 2], u32 weights, u32 tokens,
                           bool add) const {
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
      wgmma(sums, weight_descriptor(weights + block * BLOCK_BYTES),
            token_descriptor(tokens + block / 2 * X_PANEL + block % 2 * 64), metadata[block],
            add || block > 0);
    }
  }
};

// Wait for all multiplications. The compiler sees no tie between the wait and the sums; the empty
// statements keep what reads them behind it.
__device__ __forceinline__ void finish(Accumulator (&sums)[TOKENS / 2]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < TOKENS / 2; ++i) settle(sums[i]);
}

// One lane of each warp tells every block of the cluster that a stage may be overwritten, after all
// lanes have read their metadata. The compiler knows that the warp is converged and leaves nothing of
// the __syncwarp for a tool to see; in a traced build each lane speaks for itself.
__device__ __forceinline__ void release(u32 base, u32 stage, u32 lane) {
  __syncwarp();
  const u32 empty = base + AT_EMPTY + 8 * stage;
  if constexpr (TRACED) {
#pragma unroll
    for (int rank = 0; rank < SHARING; ++rank) barrier_arrive_at(empty, rank);
  } else if constexpr (SHARING == 1) {
    if (lane == 0) barrier_arrive(empty);
  } else {
    if (lane < SHARING) barrier_arrive_at(empty, lane);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    sparse_gemm(const __grid_constant__ TensorMap x_map,
                const __grid_constant__ TensorMap out_map, const u8* __restrict__ weights,
                Out* __restrict__ out, const float* __restrict__ w_scale,
                const float* __restrict__ x_scale, const Out* __restrict__ bias,
                const __grid_constant__ Problem problem) {
  extern __shared__ u8 raw[];
  const u32 base = (shared_address(raw) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  // Not %cluster_ctarank: the compiler knows that this is the same in all threads of a block.
  const u32 rank = blockIdx.x % CLUSTER;
  const u32 warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(base + AT_FULL + 8 * stage, 1);
      barrier_init(base + AT_EMPTY + 8 * stage, RELEASES);
    }
    for (int slab = 0; slab < SLABS; ++slab) {
      barrier_init(base + AT_SUMMED + 16 * slab, 1);
      barrier_init(base + AT_SUMMED + 16 * slab + 8, 4 * CLUSTER_K);
    }
    barrier_init_fence();
  }
  __syncwarp();
  if constexpr (CLUSTER > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (warp >= 4 * SLABS) {
    registers_down<FEW_REGISTERS>();
    if (warp == 4 * SLABS && lane == 0) {
      prefetch_map(&x_map);
      produce(problem, Schedule(problem, cluster, clusters, rank), base, rank, weights, &x_map);
    }
  } else {
    registers_up<MANY_REGISTERS>();
    Schedule schedule(problem, cluster, clusters, rank);
    const u32 slab = warp / 4, thread = threadIdx.x % 128, barrier = 1 + slab;
    const Epilogue epilogue{&out_map,
                            out,
                            w_scale,
                            x_scale,
                            bias,
                            base + AT_BOXES + slab * (STORE_BOXES * STORE_TOKENS * 128),
                            base + AT_SCALES + slab * SCALE_BYTES,
                            thread,
                            barrier,
                            policy_evict_first()};
    const u32 summed = base + AT_SUMMED + 16 * slab;
    SplitSum split{summed, summed + 8, base + AT_SUMS + slab * SUM_BYTES, rank, thread, lane, 0};
    wait_for_previous();
    Ring ring;
    Tile tile, next;
    for (bool more = schedule.next(tile); more; tile = next) {
      const int channel = tile.channel + 64 * static_cast<int>(slab);
      const auto channels = epilogue.fetch_scales(problem, channel, tile.token);
      Accumulator sums[TOKENS / 2];
      Fragment fragments[2];
      u32 previous = 0;
      const auto consume = [&](Fragment& fragment, bool add) {
        barrier_wait(base + AT_FULL + 8 * ring.stage, ring.parity);
        const u32 at = base + AT_W + ring.stage * W_BYTES + slab * SLAB_BYTES;
        fragment.load(at, thread);
        wgmma_begin();
        fragment.multiply(sums, at, base + AT_X + ring.stage * X_BYTES, add);
        wgmma_commit();
        wgmma_wait<1>();
        if (add) release(base, previous, lane);
        previous = ring.stage;
        ring.advance();
      };
      // Two stages a turn, so that the fragments of one in flight stay where they are. Whether there
      // is an odd one is known to the compiler: a branch here would make it wait after every stage.
      if constexpr (ODD) consume(fragments[1], false);
      for (int step = schedule.begin + ODD; step < schedule.end; step += 2) {
        consume(fragments[0], step > schedule.begin);
        consume(fragments[1], true);
      }
      more = schedule.next(next);
      finish(sums);
      release(base, previous, lane);
      if constexpr (CLUSTER_K > 1) {
        Accumulator part[4 * SplitSum::GROUPS];
        split.reduce(sums, part);
        epilogue.store<SplitSum::GROUPS>(problem, part, channels, channel, tile.token,
                                         static_cast<int>(rank) * SplitSum::GROUPS * 8);
      } else {
        epilogue.store<TOKENS / 8>(problem, sums, channels, channel, tile.token, 0);
      }
    }
  }
  // The boxes must be read before the block leaves its shared memory to another one, and a block may
  // not leave while others still arrive on its barriers or copy into it.
  if constexpr (SCALED) {
    if (threadIdx.x % 128 == 0) store_wait_read<0>();
  }
  __syncwarp();
  if constexpr (CLUSTER > 1) cluster_sync();
}
