// Where a step's token goes in each layer: columns of the table that ops/place.py makes.

constant constexpr int POSITION = 0, IN_ARENA = 1, SLOT = 2, SEEN = 3, COLUMNS = 4;
