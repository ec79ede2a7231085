// What the fuzz targets share (libFuzzer; reliability.md 6, 8): a target hands its bytes to the
// reader of one format and calls Fail when the reader does what none may do: a refusal that is not
// one clear line, or a file that is taken and does not read back the same. Crashes, undefined
// behaviour and leaks are found by the sanitizers, slow and greedy inputs by libFuzzer's limits.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "base/status.h"

namespace graft::fuzz {

[[noreturn]] inline void Fail(const std::string& what) {
  std::fprintf(stderr, "fuzz target: %s\n", what.c_str());
  std::abort();
}

inline void Require(bool condition, const std::string& what) {
  if (!condition) Fail(what);
}

inline std::string Text(const uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// OK, or one printable line of this kind that names `origin`.
inline void RequireClean(const absl::Status& status, ErrorKind kind, const std::string& origin) {
  if (status.ok()) return;
  const std::string message(status.message());
  Require(KindOf(status) == kind, "another kind of error: " + status.ToString());
  Require(message.find(origin) != std::string::npos,
          "the error does not name " + origin + ": " + message);
  Require(message.size() < 2000, "a message of " + std::to_string(message.size()) + " bytes");
  for (const char c : message) {
    Require(static_cast<unsigned char>(c) >= 0x20, "a control character in a message: " + message);
  }
}

// A folder for readers of files, in memory where the system has such a place.
class Folder {
 public:
  Folder() {
    const std::string memory = "/dev/shm";
    std::string pattern =
        (std::filesystem::is_directory(memory) ? memory
                                               : std::filesystem::temp_directory_path().string()) +
        "/graft-fuzz-XXXXXX";
    Require(::mkdtemp(pattern.data()) != nullptr, "no temp folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream stream(Path(name), std::ios::binary | std::ios::trunc);
    stream << bytes;
    stream.close();
    Require(!stream.fail(), "could not write " + Path(name));
  }

 private:
  std::string path_;
};

}  // namespace graft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size);
