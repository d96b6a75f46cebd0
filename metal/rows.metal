// The product of rows of MXFP4 matrices and a few vectors, as both halves of an expert need it.
//
// The vectors lie in threadgroup memory, a tile at a time, so that a threadgroup reads them once
// for all its rows; a weight is loaded once for all vectors. A simdgroup takes four rows together:
// a lane multiplies 32 elements of the vectors by weights that it loads, 16 bytes a row. The four
// rows begin at the same offset in a 128-byte line, and the lanes are shifted by that offset. So
// every load is of whole lines, although a row of 2880 weights does not fill whole lines.

#include "mxfp4.metal"
#include "place.metal"

constant constexpr int GROUP = 32;              // values to a scale; 16 bytes of blocks
constant constexpr int LINE = 8;                // groups to a line of 128 bytes
constant constexpr int TILE = 96;               // groups of a vector held at a time: 2880 and more
constant constexpr int STRIDE = GROUP / 4 + 1;  // float4s a group: odd, or banks collide

constexpr int tile_size(int k) {
    return (k / GROUP < TILE ? k / GROUP : TILE) * STRIDE;
}

// Rows from one to the next that begins at the same offset in a line.
constexpr int row_step(int k) {
    return k / GROUP % 8 == 0 ? 1 : k / GROUP % 4 == 0 ? 2 : k / GROUP % 2 == 0 ? 4 : 8;
}

// COUNT vectors.
template <typename T, int COUNT>
struct Vectors {
    const device T* of[COUNT];
};

// Parts of COUNT vectors in threadgroup memory: `groups` groups from `first` on.
struct Tile {
    threadgroup float4* x;
    int span;  // float4s from a vector to the next
    int first, groups;
};

// The lane's part of the products of four rows with each of COUNT vectors.
template <int COUNT>
struct Products {
    float4 of[COUNT];
};

// Copies a part of x, the vector `which`; all threads of the threadgroup take part.
template <typename T>
void load(Tile tile, int which, const device T* x, Place place) {
    const device vec<T, 4>* from = (const device vec<T, 4>*)(x + tile.first * GROUP);
    threadgroup float4* to = tile.x + which * tile.span;
    for (int i = place.thread_index; i < tile.groups * (GROUP / 4); i += place.threads) {
        to[i / (GROUP / 4) * STRIDE + i % (GROUP / 4)] = float4(from[i]);
    }
}

// The products of rows row, row + row_step(K), ... and a tile; of the four only the first `count`
// exist.
template <int K, int COUNT>
Products<COUNT> four_rows(
    const device uint4* blocks, const device uchar* scales, int row, int count, Tile tile, int lane) {
    constexpr int G = K / GROUP, STEP = row_step(K);
    const int start = row * G + tile.first;
    Products<COUNT> sums;
#pragma unroll
    for (int v = 0; v < COUNT; v++) {
        sums.of[v] = 0.0f;
    }
    for (int g = lane - start % LINE; g < tile.groups; g += 32) {
        if (g < 0) {
            continue;
        }
        uint4 words[4];
        float4 scale;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int at = start + (r < count ? r * STEP * G : 0) + g;
            words[r] = blocks[at];
            scale[r] = mxfp4_scale(scales[at]);
        }
        Products<COUNT> products;
#pragma unroll
        for (int v = 0; v < COUNT; v++) {
            products.of[v] = 0.0f;
        }
#pragma unroll
        for (int part = 0; part < 4; part++) {
            float4 low[COUNT], high[COUNT];
#pragma unroll
            for (int v = 0; v < COUNT; v++) {
                const int at = v * tile.span + g * STRIDE + 2 * part;
                low[v] = tile.x[at];
                high[v] = tile.x[at + 1];
            }
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const Eight eight = Eight(words[r][part]);
#pragma unroll
                for (int v = 0; v < COUNT; v++) {
                    products.of[v][r] = dot8(eight, low[v], high[v], products.of[v][r]);
                }
            }
        }
#pragma unroll
        for (int v = 0; v < COUNT; v++) {
            sums.of[v] = fma(products.of[v] * EIGHT_SCALE, scale, sums.of[v]);
        }
    }
    return sums;
}

// Adds factor * (the rows' products with a tile) to sums[0 .. count), for rows row .. row + count;
// of the second vector to sums[stride ..).
//
// The simdgroups divide the rows into sets of four. The thread that adds to a row's sum is the same
// in every call, so that the sums need no barrier between calls.
template <int K, int COUNT>
void add_rows(
    const device uint4* blocks,
    const device uchar* scales,
    int row,
    int count,
    float factor,
    Tile tile,
    threadgroup float* sums,
    int stride,
    Place place) {
    constexpr int STEP = row_step(K);
    const int sets = (count + 4 * STEP - 1) / (4 * STEP) * STEP;
    for (int set = place.simdgroup; set < sets; set += place.simdgroups) {
        const int begin = set / STEP * 4 * STEP + set % STEP;
        const int present = min(4, (count - begin + STEP - 1) / STEP);
        if (present <= 0) {
            continue;
        }
        const Products<COUNT> found =
            four_rows<K, COUNT>(blocks, scales, row + begin, present, tile, place.lane);
#pragma unroll
        for (int v = 0; v < COUNT; v++) {
            const float4 mine = found.of[v];
            const float4 all = float4(
                simd_sum(mine.x), simd_sum(mine.y), simd_sum(mine.z), simd_sum(mine.w));
            if (place.lane < present) {
                threadgroup float* sum = sums + v * stride + begin + place.lane * STEP;
                *sum = fma(factor, all[place.lane], *sum);
            }
        }
    }
}

// Adds factor * (matrix rows . x) for the whole of each vector; all threads of the threadgroup take
// part. space: of COUNT * tile_size(K).
template <typename T, int K, int COUNT>
void add_product(
    Vectors<T, COUNT> x,
    const device uint4* blocks,
    const device uchar* scales,
    int row,
    int count,
    float factor,
    threadgroup float4* space,
    threadgroup float* sums,
    int stride,
    Place place) {
    for (int first = 0; first < K / GROUP; first += TILE) {
        const Tile tile = {space, tile_size(K), first, min(TILE, K / GROUP - first)};
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int v = 0; v < COUNT; v++) {
            load(tile, v, x.of[v], place);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        add_rows<K, COUNT>(blocks, scales, row, count, factor, tile, sums, stride, place);
    }
}
