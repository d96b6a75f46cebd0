// Called by each basic block of a kernel compiled to count its operations (operations.py).
#include "machine.h"

extern "C" void metal_count_operations(uint32_t floating, uint32_t integer, uint32_t conversions) {
  machine.totals.floating += floating;
  machine.totals.integer += integer;
  machine.totals.conversions += conversions;
}
