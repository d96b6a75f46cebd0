// A thread's place in its threadgroup and simdgroup.

#include <metal_stdlib>

using namespace metal;

struct Place {
    int thread_index, threads, simdgroup, simdgroups, lane;
};
