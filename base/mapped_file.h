// A read-only memory map of a whole file. Pages that are not touched are not read. Used for
// safetensors files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace graft {

class MappedFile {
 public:
  // Errors as OpenForReading. An empty file gives size 0 and a null pointer.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path,
                                                          const ReadOptions& options = {});
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  const uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  int slot_ = -1;  // in the list that the SIGBUS handler reads
};

// The pages of mapped data that were read once and are not needed soon no longer count as this
// process's memory; touching them again reads them anew.
void DropPages(const void* data, std::size_t size);

// A mapped file that another process cuts short raises SIGBUS on the next touch: from now on that
// ends this process with "graft: error: io: <file>: ..." and exit code 74. Called once, first thing
// in main.
void InstallBusErrorHandler();

}  // namespace graft
