// A model of what a disk may hold after the power went: records the calls that change files
// (base/io_calls.h) and builds the folder anew from them, dropping at random what no fsync covers
// (reliability.md 8, K3). Harsher than any file system: nothing but fsync orders anything, a
// folder's entries last only after an fsync of that folder, and unsynced data may be a hole.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/io_calls.h"

namespace graft::testing {

class PowerLossIo : public IoCalls {
 public:
  explicit PowerLossIo(const std::string& root) : node_of_{{root, 0}}, is_folder_{true} {}
  size_t size() const { return log_.size(); }

  // The tree below the root as it may be after a crash before call number `end` of the log.
  void Rebuild(size_t end, std::mt19937& random, const std::string& target) const {
    std::map<int, std::map<std::string, int>> entries;
    std::map<int, std::string> data;
    for (size_t i = 0; i < end; ++i) {
      const Change& change = log_[i];
      const bool kept = Lasts(i, end) || random() % 2 == 0;
      if (change.kind == Kind::kData && (kept || random() % 2 == 0)) {
        std::string& bytes = data[change.node];
        if (bytes.size() < change.offset + change.bytes.size()) {
          bytes.resize(change.offset + change.bytes.size(), '\0');
        }
        if (kept) bytes.replace(change.offset, change.bytes.size(), change.bytes);
      }
      if (change.kind != Kind::kEntry || !kept) continue;
      if (!change.old_name.empty()) entries[change.folder].erase(change.old_name);
      if (change.node >= 0) entries[change.folder][change.name] = change.node;
    }
    Materialize(0, entries, data, target);
  }

  int Open(const char* path, int flags, mode_t mode) override {
    const int fd = IoCalls::Open(path, flags, mode);
    if (fd < 0) return fd;
    if ((flags & O_CREAT) != 0) AddEntry(path, NewNode(path, false), "");
    if (const auto node = node_of_.find(path); node != node_of_.end()) {
      struct stat info {};
      const bool at_end = (flags & O_APPEND) != 0 && ::fstat(fd, &info) == 0;
      open_[fd] = {node->second, at_end ? static_cast<size_t>(info.st_size) : 0};
    }
    return fd;
  }
  ssize_t Write(int fd, const void* bytes, std::size_t size) override {
    const ssize_t count = IoCalls::Write(fd, bytes, size);
    if (count > 0) {
      OpenFile& file = open_.at(fd);
      log_.push_back({Kind::kData, file.node, -1, "", "", file.offset,
                      std::string(static_cast<const char*>(bytes), static_cast<size_t>(count))});
      file.offset += static_cast<size_t>(count);
    }
    return count;
  }
  int Fsync(int fd) override {
    log_.push_back({Kind::kSync, open_.at(fd).node, -1, "", "", 0, ""});
    return IoCalls::Fsync(fd);
  }
  int Close(int fd) override {
    open_.erase(fd);
    return IoCalls::Close(fd);
  }
  int Rename(const char* from, const char* to) override {
    const int result = IoCalls::Rename(from, to);
    if (result != 0) return result;
    const std::string old_path = from, new_path = to;
    std::map<std::string, int> moved;
    for (const auto& [path, node] : node_of_) {
      const bool below = path.compare(0, old_path.size() + 1, old_path + "/") == 0;
      if (path == old_path || below)
        moved[new_path + path.substr(old_path.size())] = node;
      else
        moved[path] = node;
    }
    node_of_ = std::move(moved);
    AddEntry(new_path, node_of_.at(new_path), Basename(old_path));  // within one folder
    return result;
  }
  int MakeFolder(const char* path, mode_t mode) override {
    const int result = IoCalls::MakeFolder(path, mode);
    if (result == 0) AddEntry(path, NewNode(path, true), "");
    return result;
  }
  int RemoveAt(int folder, const char* name, int flags, const char* path) override {
    const int result = IoCalls::RemoveAt(folder, name, flags, path);
    if (result == 0 && node_of_.erase(path) != 0) AddEntry(path, -1, name);
    return result;
  }

 private:
  enum class Kind { kData, kEntry, kSync };
  struct Change {
    Kind kind;
    int node;    // of the data, of the new entry (-1 = none), of the sync
    int folder;  // of the entry
    std::string name, old_name;
    size_t offset;
    std::string bytes;
  };
  struct OpenFile {
    int node;
    size_t offset;
  };

  int NewNode(const std::string& path, bool folder) {
    is_folder_.push_back(folder);
    return node_of_[path] = static_cast<int>(is_folder_.size()) - 1;
  }
  void AddEntry(const std::string& path, int node, const std::string& old_name) {
    log_.push_back(
        {Kind::kEntry, node, node_of_.at(FolderOf(path)), Basename(path), old_name, 0, ""});
  }
  bool Lasts(size_t index, size_t end) const {
    const Change& change = log_[index];
    const int synced = change.kind == Kind::kData ? change.node : change.folder;
    for (size_t i = index + 1; i < end; ++i) {
      if (log_[i].kind == Kind::kSync && log_[i].node == synced) return true;
    }
    return false;
  }
  void Materialize(int node, const std::map<int, std::map<std::string, int>>& entries,
                   const std::map<int, std::string>& data, const std::string& path) const {
    if (!is_folder_[static_cast<size_t>(node)]) {
      const auto bytes = data.find(node);
      std::ofstream(path, std::ios::binary) << (bytes == data.end() ? "" : bytes->second);
      return;
    }
    std::filesystem::create_directories(path);
    const auto found = entries.find(node);
    if (found == entries.end()) return;
    for (const auto& [name, child] : found->second) {
      Materialize(child, entries, data, path + "/" + name);
    }
  }

  std::map<std::string, int> node_of_;
  std::vector<bool> is_folder_;
  std::map<int, OpenFile> open_;
  std::vector<Change> log_;
};

}  // namespace graft::testing
