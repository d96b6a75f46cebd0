// The product of rows of MXFP4 matrices and one vector, as both halves of an expert need it.
//
// The vector lies in threadgroup memory, a tile at a time, so that a threadgroup reads it once for
// all its rows. A simdgroup takes four rows together: a lane multiplies 32 elements of the vector
// by weights that it loads, 16 bytes a row. The four rows begin at the same offset in a 128-byte
// line, and the lanes are shifted by that offset. So every load is of whole lines, although a row
// of 2880 weights does not fill whole lines.

#include "mxfp4.metal"
#include "place.metal"

constant constexpr int GROUP = 32;              // values to a scale; 16 bytes of blocks
constant constexpr int LINE = 8;                // groups to a line of 128 bytes
constant constexpr int TILE = 128;              // groups of the vector held at a time
constant constexpr int STRIDE = GROUP / 4 + 1;  // float4s a group: odd, or banks collide

constexpr int tile_size(int k) {
    return (k / GROUP < TILE ? k / GROUP : TILE) * STRIDE;
}

// Rows from one to the next that begins at the same offset in a line.
constexpr int row_step(int k) {
    return k / GROUP % 8 == 0 ? 1 : k / GROUP % 4 == 0 ? 2 : k / GROUP % 2 == 0 ? 4 : 8;
}

// Part of a vector of K in threadgroup memory: `groups` groups from `first` on.
struct Tile {
    threadgroup float4* x;
    int first, groups;
};

// Copies a part of x; all threads of the threadgroup take part.
template <typename T>
void load(Tile tile, const device T* x, Place place) {
    const device vec<T, 4>* from = (const device vec<T, 4>*)(x + tile.first * GROUP);
    for (int i = place.thread_index; i < tile.groups * (GROUP / 4); i += place.threads) {
        tile.x[i / (GROUP / 4) * STRIDE + i % (GROUP / 4)] = float4(from[i]);
    }
}

// The lane's part of the products of four rows and a tile: rows row, row + row_step(K), ...
// of which only the first `count` exist.
template <int K>
float4 four_rows(
    const device uint4* blocks, const device uchar* scales, int row, int count, Tile tile, int lane) {
    constexpr int G = K / GROUP, STEP = row_step(K);
    const int start = row * G + tile.first;
    float4 sums = 0.0f;
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
        float4 products = 0.0f;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const float4 low = tile.x[g * STRIDE + 2 * part];
            const float4 high = tile.x[g * STRIDE + 2 * part + 1];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                products[r] = dot8(Eight(words[r][part]), low, high, products[r]);
            }
        }
        sums = fma(products * EIGHT_SCALE, scale, sums);
    }
    return sums;
}

// Adds factor * (the rows' products with a tile) to sums[0 .. count), for rows row .. row + count.
//
// The simdgroups divide the rows into sets of four. The thread that adds to a row's sum is the same
// in every call, so that the sums need no barrier between calls.
template <int K>
void add_rows(
    const device uint4* blocks,
    const device uchar* scales,
    int row,
    int count,
    float factor,
    Tile tile,
    threadgroup float* sums,
    Place place) {
    constexpr int STEP = row_step(K);
    const int sets = (count + 4 * STEP - 1) / (4 * STEP) * STEP;
    for (int set = place.simdgroup; set < sets; set += place.simdgroups) {
        const int begin = set / STEP * 4 * STEP + set % STEP;
        const int present = min(4, (count - begin + STEP - 1) / STEP);
        if (present <= 0) {
            continue;
        }
        const float4 mine = four_rows<K>(blocks, scales, row + begin, present, tile, place.lane);
        const float4 all = float4(
            simd_sum(mine.x), simd_sum(mine.y), simd_sum(mine.z), simd_sum(mine.w));
        if (place.lane < present) {
            sums[begin + place.lane * STEP] += factor * all[place.lane];
        }
    }
}

// Adds factor * (matrix rows . x) for the whole of x; all threads of the threadgroup take part.
template <typename T, int K>
void add_product(
    const device T* x,
    const device uint4* blocks,
    const device uchar* scales,
    int row,
    int count,
    float factor,
    threadgroup float4* space,
    threadgroup float* sums,
    Place place) {
    for (int first = 0; first < K / GROUP; first += TILE) {
        const Tile tile = {space, first, min(TILE, K / GROUP - first)};
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load(tile, x, place);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        add_rows<K>(blocks, scales, row, count, factor, tile, sums, place);
    }
}
