// The one list of methods.
#include "adapters/adapter.h"

#include "absl/strings/str_cat.h"
#include "adapters/fanlora.h"
#include "adapters/full.h"
#include "adapters/ia3.h"
#include "adapters/idpg.h"
#include "adapters/lopa.h"
#include "adapters/lora.h"
#include "adapters/none.h"
#include "adapters/para.h"
#include "adapters/prompt_tuning.h"
#include "adapters/red.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Method> (*make)();
};

template <typename M>
std::unique_ptr<Method> Make() {
  return std::make_unique<M>();
}

constexpr Entry kMethods[] = {
    {"fanlora", &Make<FanLora>},
    {"full", &Make<Full>},
    {"ia3", &Make<Ia3>},
    {"idpg", &Make<Idpg>},
    {"lopa", &Make<Lopa>},
    {"lora", &Make<Lora>},
    {"none", &Make<None>},
    {"para", &Make<Para>},
    {"prompt_tuning", &Make<PromptTuning>},
    {"red", &Make<Red>},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Method>> NewMethod(const std::string& name) {
  for (const Entry& entry : kMethods) {
    if (name == entry.name) return entry.make();
  }
  return RecipeError(absl::StrCat("adapter.method: found `", Printable(name), "`, allowed: ",
                                  JoinNames(MethodNames()), DidYouMean(name, MethodNames())));
}

std::vector<std::string> MethodNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kMethods) names.push_back(entry.name);
  return names;
}

}  // namespace graft::adapters
