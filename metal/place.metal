// Where a thread is.

#include <metal_stdlib>

using namespace metal;

struct Place {
    int thread_index, threads, simdgroup, simdgroups, lane;
};
