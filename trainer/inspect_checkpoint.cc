#include "trainer/inspect_checkpoint.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"
#include "sharding/checkpoint_folder.h"
#include "trainer/inspect_lines.h"

namespace graft::trainer {
namespace {

std::string Shown(const std::string& text) { return Printable(text); }

void AddRun(const sharding::Manifest& manifest, std::string* text) {
  AddLine("run",
          absl::StrCat(manifest.run_id, ", start ", manifest.start, ", saved ",
                       Shown(manifest.created), " by graft ", Shown(manifest.graft_version)),
          text);
  AddLine("step",
          absl::StrCat(manifest.step, " finished: ", manifest.updates, " updates, ",
                       manifest.skipped, " skipped as not finite"),
          text);
  if (manifest.eval.has_value() && manifest.eval->best.has_value()) {
    AddLine("best evaluation",
            absl::StrCat(Shown(manifest.eval->metric), " ", FormatReal(*manifest.eval->best),
                         " at step ", manifest.eval->best_step),
            text);
  }
}

void AddInputs(const sharding::Manifest& manifest, std::string* text) {
  const sharding::BaseModelInfo& base = manifest.base;
  AddLine("model",
          absl::StrCat(Shown(base.model_type), ", ", base.num_layers, " layers, hidden size ",
                       base.hidden_size, ", vocabulary ", base.vocab_size, ", ", Shown(base.dtype),
                       base.quantize == "none" ? "" : absl::StrCat(", ", Shown(base.quantize))),
          text);
  AddLine("model fingerprint", base.fingerprint, text);
  AddLine("adapter",
          absl::StrCat(Shown(manifest.adapter.method), ", ", manifest.adapter.parameters,
                       " parameters, hash64 ", Hex64(manifest.adapter.hash64)),
          text);
  AddLine(
      "optimizer",
      absl::StrCat(Shown(manifest.optimizer.name), ", lr ", FormatReal(manifest.schedule.lr), " ",
                   Shown(manifest.schedule.name), ", warm-up ", manifest.schedule.warmup_steps,
                   " of ", manifest.schedule.total_steps, " steps"),
      text);
  const sharding::DataInfo& data = manifest.data;
  AddLine("data",
          absl::StrCat(data.num_samples, " samples", data.shuffle ? ", shuffled" : "",
                       data.packing ? ", packed" : "", ", ", data.global_batch,
                       " a step; now in epoch ", data.epoch, " after ", data.cursor,
                       data.packing ? " rows" : " samples"),
          text);
  AddLine("data fingerprint", data.fingerprint, text);
  AddLine("seed", absl::StrCat(static_cast<int64_t>(manifest.rng.key)), text);
}

void AddLayout(const sharding::LayoutInfo& layout, std::string* text) {
  AddLine("layout",
          absl::StrCat("data ", layout.data, " x pipeline ", layout.pipeline, ", layers ",
                       absl::StrJoin(layout.split, "+"), ", ", Shown(layout.schedule),
                       ", micro-batch ", layout.micro_batch, ", ", layout.threads,
                       " threads a rank, ", Shown(layout.device), " ", Shown(layout.cpu_isa)),
          text);
  std::vector<std::string> versions;
  for (const auto& [name, version] : layout.versions) {
    versions.push_back(absl::StrCat(Shown(name), " ", Shown(version)));
  }
  AddLine("versions", absl::StrJoin(versions, ", "), text);
}

}  // namespace

absl::StatusOr<std::string> DescribeCheckpoint(const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(const sharding::Manifest manifest, sharding::ValidateCheckpoint(folder));
  std::string text;
  AddLine("checkpoint", Printable(folder, 512), &text);
  AddLine("format", absl::StrCat("graft-checkpoint, version ", sharding::kManifestVersion), &text);
  AddRun(manifest, &text);
  AddInputs(manifest, &text);
  AddLayout(manifest.layout, &text);
  int64_t bytes = 0;
  for (const sharding::CheckpointFile& file : manifest.files) bytes += file.bytes;
  AddLine("files", absl::StrCat(manifest.files.size(), ", ", FormatBytes(bytes)), &text);
  AddLine("tensors",
          absl::StrCat(manifest.tensors.size(), ", parameters with their moments and averages"),
          &text);
  AddLine("checksums", "every file and every tensor match the manifest", &text);
  return text;
}

}  // namespace graft::trainer
