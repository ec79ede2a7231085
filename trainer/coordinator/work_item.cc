#include "trainer/coordinator/work_item.h"

#include "absl/strings/str_cat.h"
#include "base/hash.h"

namespace graft::trainer {
namespace {

// Goes up when the bytes of a result change their meaning.
constexpr int kResultVersion = 1;

}  // namespace

std::string RunKey(const RunFacts& facts) {
  return Sha256Hex(absl::StrCat("graft-score\nversion ", kResultVersion, "\nmodel ",
                                facts.model_fingerprint, "\nadapter ", facts.adapter_fingerprint,
                                "\ndata ", facts.data_fingerprint, "\nscore ", facts.score,
                                "\ndtype ", facts.dtype, "\nthreads ", facts.threads, "\n"));
}

std::string ItemId(const std::string& run_key, const WorkItem& item) {
  return Sha256Hex(absl::StrCat(run_key, "\nkind ", item.kind, "\nsamples ", item.first_sample, " ",
                                item.num_samples, "\nlayers ", item.first_layer, " ",
                                item.num_layers, "\nmicro_batch ", item.micro_batch, "\n"));
}

std::string ItemName(const WorkItem& item) {
  std::string name = item.kind;
  if (item.num_layers > 0) {
    absl::StrAppend(&name, " of layers ", item.first_layer, "-",
                    item.first_layer + item.num_layers - 1);
  }
  absl::StrAppend(&name, name == item.kind ? " of samples " : ", samples ", item.first_sample, "-",
                  item.first_sample + item.num_samples - 1);
  return name;
}

}  // namespace graft::trainer
