// One list of fields for reading, rejecting, printing and documenting: each recipe section (and each adapter method) is a struct
// with Visit(FieldVisitor&), which names every key once with its help and range. The value before the visit is the default.
// Implementations: YAML reader, YAML/JSON printer, help writer (base/recipe_yaml.h).
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace graft {

struct FieldInfo {
  const char* name;
  const char* help;  // one sentence: meaning, unit, special values
};

class FieldVisitor {
 public:
  static constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();
  virtual ~FieldVisitor() = default;
  virtual void Bool(FieldInfo info, bool* value) = 0;
  // min <= value <= max.
  virtual void Int(FieldInfo info, int64_t* value, int64_t min = 0, int64_t max = kMaxInt) = 0;
  // min <= value <= max and finite.
  virtual void Real(FieldInfo info, double* value, double min, double max) = 0;
  // One of `choices`; any text when there are none.
  virtual void Text(FieldInfo info, std::string* value, const std::vector<std::string>& choices = {}) = 0;
  // A list of scalars, or one scalar that stands for a list of one; elements are kept as text.
  virtual void TextList(FieldInfo info, std::vector<std::string>* value, const std::vector<std::string>& choices = {}) = 0;
  virtual void RealList(FieldInfo info, std::vector<double>* value, double min, double max) = 0;
  // A nested map. End() closes it.
  virtual void Begin(FieldInfo info) = 0;
  virtual void End() = 0;
};

}  // namespace graft
