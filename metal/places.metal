// Slot mapping of a step: columns of the table that ops/place.py makes, a row for each sequence and
// layer.

constant constexpr int POSITION = 0, IN_ARENA = 1, SLOT = 2, SEEN = 3, RANGES = 4, COLUMNS = 5;
