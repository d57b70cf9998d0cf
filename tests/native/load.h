// What the drivers of the loader share.

#pragma once

#include <cstddef>
#include <cstdint>

// Loads the model that `data` holds: 4 bytes, the length of its config (the lowest first), the config, the weights.
// Returns whether it was loaded, not refused.
bool load_from(const uint8_t* data, size_t size);
