// Sizes of one configuration, from its macros, and where things lie in shared memory.

constexpr int SHARING = CLUSTER_W * CLUSTER_X;   // blocks that copy for each other
constexpr int CLUSTER = SHARING * CLUSTER_K;
constexpr int RELEASES = 4 * SLABS * SHARING * (TRACED ? 32 : 1);  // of a stage, by warps or lanes
static_assert(CLUSTER_K == 1 || SHARING == 1, "a cluster either shares operands or splits K");
static_assert(CLUSTER_K == 1 || !ODD, "a cluster splits an even number of stages");
constexpr int BLOCK_VALUES = 2048;               // 64 channels x 32 of 64 weights
constexpr int BLOCK_BYTES = BLOCK_VALUES + 512;  // and 128 words of metadata
constexpr int SLAB_BYTES = BLOCKS * BLOCK_BYTES;
constexpr int W_BYTES = SLABS * SLAB_BYTES;
constexpr int X_PANEL = TOKENS * 128;            // 128 of K'
constexpr int X_BYTES = BLOCKS / 2 * X_PANEL;
constexpr int SUM_BYTES = 64 * TOKENS * 4;       // accumulators of a warpgroup
constexpr int SCALE_BYTES = (TOKENS + 15) / 16 * 64;  // kept in groups of sixteen
constexpr int ALIGNMENT = 1024;

// Shared memory, from an aligned start.
constexpr int AT_X = 0;
constexpr int AT_W = AT_X + STAGES * X_BYTES;
constexpr int AT_SUMS = AT_W + STAGES * W_BYTES;  // of all blocks of a cluster that splits K
constexpr int AT_BOXES = AT_SUMS + (CLUSTER_K > 1 ? SLABS * SUM_BYTES : 0);
constexpr int AT_SCALES = AT_BOXES + SLABS * STORE_BOXES * STORE_TOKENS * 128;
constexpr int AT_FULL = AT_SCALES + SLABS * SCALE_BYTES;
constexpr int AT_EMPTY = AT_FULL + 8 * STAGES;
constexpr int AT_SUMMED = AT_EMPTY + 8 * STAGES;  // two barriers a slab: sums came, sums were read
constexpr int SHARED_BYTES = AT_SUMMED + 16 * SLABS;
static_assert(SHARED_BYTES + ALIGNMENT == SHARED, "the host's model is the layout");

// Registers: one warpgroup copies and gives most of its own to those that multiply.
constexpr int THREADS = 128 * (SLABS + 1);
constexpr int FEW_REGISTERS = SLABS == 3 ? 32 : 40;
constexpr int EVEN_REGISTERS = 65536 / RESIDENT / THREADS / 8 * 8;
constexpr int SPARE_REGISTERS = (EVEN_REGISTERS * THREADS / 128 - FEW_REGISTERS) / SLABS / 8 * 8;
constexpr int MANY_REGISTERS = SPARE_REGISTERS < 240 ? SPARE_REGISTERS : 240;
