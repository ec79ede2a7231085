// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected) of message headers and journal records.
// Check value: "123456789" gives 0xE3069283. For small inputs; files are hashed with SHA-256
// (base/).
#pragma once

#include <cstddef>
#include <cstdint>

namespace graft::comm {

uint32_t Crc32c(const void* data, std::size_t bytes);

}  // namespace graft::comm
