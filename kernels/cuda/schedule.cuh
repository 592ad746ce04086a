// Which tiles a cluster of blocks computes, and which part of K of each.

// Division by a number that the host knows: (2 n * factor) >> (32 + shift), exact for n < 2^31.
struct Divisor {
  u32 factor, shift;

  __device__ int divide(int n) const {
    return static_cast<int>(__umulhi(2u * static_cast<u32>(n), factor) >> shift);
  }
};

struct Problem {
  int m, n;      // tokens, output channels
  int blocks;    // of 64 weights that a row of K' is stored in
  int stages;    // of K'; even unless ODD
  int tiles_w;   // cluster tiles along the output channels
  int tiles_x;   // cluster tiles along the tokens
  int group;     // tiles of the inner direction before the outer one advances
  int along_x;   // the inner direction: tokens (1) or output channels (0)
  Divisor band;  // tiles of a whole band
  Divisor width[2];  // tiles across a band: a whole one, the last one
};

// What a block computes of one tile, from its first channel and token on.
struct Tile {
  int channel, token;
};

// Tiles are dealt out in turn. Bands of `group` tiles of the inner direction are walked along the
// outer one, so that blocks that run together find what they share in the L2 cache.
struct Schedule {
  const Problem& problem;
  u32 rank;
  int tile, stride;
  int begin, end;  // this block's stages of every tile

  __device__ Schedule(const Problem& problem, int cluster, int clusters, u32 rank)
      : problem(problem), rank(rank), tile(cluster), stride(clusters) {
    const int part = static_cast<int>(rank / SHARING);
    begin = problem.stages / 2 * part / CLUSTER_K * 2;
    end = CLUSTER_K == 1 ? problem.stages : problem.stages / 2 * (part + 1) / CLUSTER_K * 2;
  }

  __device__ bool next(Tile& place) {
    if (tile >= problem.tiles_w * problem.tiles_x) return false;
    const int inner = problem.along_x ? problem.tiles_x : problem.tiles_w;
    const int outer = problem.along_x ? problem.tiles_w : problem.tiles_x;
    const int first = problem.band.divide(tile) * problem.group;
    const int left = inner - first, width = min(problem.group, left);
    const int rest = tile - first * outer;
    const int across = problem.width[left < problem.group].divide(rest);
    const int along = first + rest - across * width;
    const int x = problem.along_x ? along : across, w = problem.along_x ? across : along;
    const int rank_w = static_cast<int>(rank % CLUSTER_W);
    const int rank_x = static_cast<int>(rank / CLUSTER_W % CLUSTER_X);
    place = {(w * CLUSTER_W + rank_w) * (64 * SLABS), (x * CLUSTER_X + rank_x) * TOKENS};
    tile += stride;
    return true;
  }
};
