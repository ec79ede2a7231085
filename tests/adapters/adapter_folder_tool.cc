// Reads and writes adapter folders for peft_roundtrip_test.py:
//   adapter_folder_tool write|copy FROM TO METHOD LAYERS D DKV F [key=value ...]
// write: random values, as after training (FROM is not read). copy: reads and checks FROM, writes
// TO. Sizes are those of a Llama-shaped model. Exits as graft does, with the error on stderr.
#include <cstdio>
#include <cstdlib>
#include <string>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "sharding/adapter_folder.h"
#include "tests/adapters/llama_sites.h"

namespace graft {
namespace {

constexpr int kFirstField = 9;

FieldList FieldsOf(int argc, char** argv) {
  FieldList fields;
  for (int i = kFirstField; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t equals = text.find('=');
    fields.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return fields;
}

absl::Status Run(int argc, char** argv) {
  if (argc < kFirstField) return UsageError("see the top of adapter_folder_tool.cc");
  const std::string action = argv[1], from = argv[2], to = argv[3];
  GRAFT_ASSIGN_OR_RETURN(const auto method, adapters::NewMethod(argv[4]));
  GRAFT_RETURN_IF_ERROR(ReadFieldList(FieldsOf(argc, argv), "fields",
                                      [&](FieldVisitor& v) { method->VisitFields(v); }));
  GRAFT_ASSIGN_OR_RETURN(const auto matched, method->MatchSites(adapters::LlamaSites(
                                                 std::atoi(argv[5]), std::atoll(argv[6]),
                                                 std::atoll(argv[7]), std::atoll(argv[8]))));
  adapters::NamedTensors parameters;
  if (action == "copy") {
    GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder folder, sharding::ReadAdapterFolder(from));
    GRAFT_ASSIGN_OR_RETURN(parameters, sharding::FolderParameters(folder, *method, matched));
  } else {
    at::manual_seed(1);
    for (const auto& parameter : method->Parameters(matched)) {
      parameters.emplace_back(parameter.name, 0.2 * at::randn(parameter.shape));
    }
  }
  return sharding::WriteAdapterFolder(to, method->PeftConfig(matched, {"", "CAUSAL_LM"}),
                                      method->ToFolder(matched, parameters));
}

}  // namespace
}  // namespace graft

int main(int argc, char** argv) {
  const absl::Status status = graft::Run(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return graft::ExitCodeOf(status);
}
