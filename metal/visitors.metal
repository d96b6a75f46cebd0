// Which pairs, of a token and an expert that it has chosen, visit one slot.
//
// Where several tokens are decoded, the threadgroup of the first pair that visits a slot computes
// for all that do, two at a time: the expert's weights are then read once for both. The
// threadgroups of the other pairs return at once.

#include <metal_stdlib>

using namespace metal;

// The first pair, of `begin` to `pairs`, that visits a slot; `pairs` if there is none.
template <typename Slots>
int next_visitor(Slots slots, uint slot, int begin, int pairs) {
    int pair = begin;
    while (pair < pairs && slots[pair] != slot) {
        pair++;
    }
    return pair;
}
