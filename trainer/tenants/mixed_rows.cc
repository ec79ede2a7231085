#include "trainer/tenants/mixed_rows.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/device.h"

namespace graft::trainer {
namespace {

using models::RowEdit;
using models::SiteId;
using models::SiteInput;
using Wave = MixedRows::Wave;
using SharedInput = MixedRows::SharedInput;

constexpr size_t kMaxLayouts = 256;  // whose tables' memory is kept: at most some MB each

// What `edit` makes of t as contiguous float32, in the dtype of t.
template <typename Edit>
torch::Tensor InFloat(const torch::Tensor& t, const Edit& edit) {
  const torch::Tensor wide = t.to(at::kFloat).contiguous();
  return edit(wide).to(t.scalar_type());
}

torch::Tensor EditVectors(const torch::Tensor& t, const std::vector<adapters::RowVectors>& rows,
                          bool in_place) {
  return InFloat(t, [&](const torch::Tensor& from) {
    const torch::Tensor to = in_place ? from : at::empty_like(from);
    adapters::ScaleAndShiftRows(from.const_data_ptr<float>(), to.data_ptr<float>(), from.size(1),
                                rows);
    return to;
  });
}

class MixedSite : public models::SiteHook {
 public:
  MixedSite(MixedRows* pass, std::vector<Wave> waves) : pass_(*pass), waves_(std::move(waves)) {}

  SiteInput EditInput(const SiteInput& x, models::SiteContext& context) override {
    SiteInput edited = x;
    for (const Wave& wave : waves_) {
      if (!wave.input_vectors.empty())
        edited = {EditVectors(edited.value, wave.input_vectors, /*in_place=*/false), nullptr};
      if (wave.on_device) {
        const torch::Tensor value = pass_.device_edits().EditInput(*wave.on_device, edited.value);
        if (!value.is_same(edited.value)) edited = {value, nullptr};
      }
      bool copied = false;
      for (const auto& [group, row_hook] : wave.others)
        CallInput(group, *row_hook->hook, context.layer, &copied, &edited);
    }
    return edited;
  }

  torch::Tensor EditOutput(const SiteInput& x, torch::Tensor y,
                           models::SiteContext& context) override {
    const bool is_linear = x.value.defined();
    bool own = is_linear;  // a hidden state is not ours to overwrite
    for (const Wave& wave : waves_) {
      if (wave.on_device) {
        const torch::Tensor from = y;
        y = pass_.device_edits().EditOutput(*wave.on_device, x.value, y, context);
        own = own || !y.is_same(from);
      }
      if (!wave.low_rank.empty()) y = AddLowRank(wave, x.value, y, context);
      if (!wave.output_vectors.empty()) {
        y = EditVectors(y, wave.output_vectors, own);
        own = true;
      }
      for (const auto& [group, row_hook] : wave.others) {
        if (!own) y = y.clone();
        own = true;
        CallOutput(group, *row_hook->hook, x, context.layer, y);
      }
    }
    return y;
  }

 private:
  static torch::Tensor RowsOf(const TenantRows& group, const torch::Tensor& t) {
    return t.narrow(0, group.begin, group.end() - group.begin);
  }

  void CallInput(size_t index, models::SiteHook& hook, int layer, bool* copied, SiteInput* x) {
    models::SiteContext& context = pass_.own_pass(index).context;
    context.layer = layer;
    const torch::Tensor rows = RowsOf(pass_.group(index), x->value);
    const torch::Tensor edited = hook.EditInput({rows, nullptr}, context).value;
    if (edited.is_same(rows)) return;
    if (!*copied) *x = {x->value.clone(), nullptr};
    *copied = true;
    RowsOf(pass_.group(index), x->value).copy_(edited);
  }

  void CallOutput(size_t index, models::SiteHook& hook, const SiteInput& x, int layer,
                  const torch::Tensor& y) {
    models::SiteContext& context = pass_.own_pass(index).context;
    context.layer = layer;
    const TenantRows& group = pass_.group(index);
    SiteInput input;
    if (x.value.defined()) input.value = RowsOf(group, x.value);
    const torch::Tensor rows = RowsOf(group, y);
    const torch::Tensor edited = hook.EditOutput(input, rows, context);
    if (!edited.is_same(rows)) rows.copy_(edited);
  }

  torch::Tensor AddLowRank(const Wave& wave, const torch::Tensor& x, const torch::Tensor& y,
                           models::SiteContext& context) {
    const torch::Tensor t = InnerProducts(*wave.input, x, context);
    return InFloat(y, [&](const torch::Tensor& wide) {
      adapters::AddGroupsUp(t.const_data_ptr<float>(), wave.input->columns, wave.low_rank,
                            wide.data_ptr<float>(), wide.size(1));
      return wide;
    });
  }

  // Of all linears that read x: the first one makes them, the others find them in the context.
  static torch::Tensor InnerProducts(const SharedInput& input, const torch::Tensor& x,
                                     models::SiteContext& context) {
    torch::Tensor& products = context.scratch[{&input, 0}];
    torch::Tensor& read = context.scratch[{&input, 1}];
    if (read.defined() && read.is_same(x)) return products;
    const torch::Tensor wide = x.to(at::kFloat).contiguous();
    read = x;
    products = at::empty({x.size(0), input.columns}, wide.options());
    adapters::ProjectGroupsDown(wide.const_data_ptr<float>(), wide.size(1), input.groups,
                                products.data_ptr<float>(), input.columns);
    return products;
  }

  MixedRows& pass_;
  std::vector<Wave> waves_;
};

// Gives the low-rank groups of linears with one input their columns, each tenant's side by side.
void ShareInputs(std::map<SiteId, std::vector<Wave>>* sites) {
  std::map<std::pair<SiteId, size_t>, std::shared_ptr<SharedInput>> inputs;
  std::map<std::pair<const SharedInput*, int64_t>, int64_t> used;  // columns, by group's first row
  for (auto& [site, waves] : *sites) {
    for (size_t i = 0; i < waves.size(); ++i) {
      if (waves[i].low_rank.empty()) continue;
      std::shared_ptr<SharedInput>& input = inputs[{{site.layer, InputOf(site.role)}, i}];
      if (input == nullptr) input = std::make_shared<SharedInput>();
      for (adapters::LowRankGroup& group : waves[i].low_rank) {
        int64_t& column = used[{input.get(), group.begin}];
        group.column = column;
        column += group.rank;
        input->columns = std::max(input->columns, column);
        input->groups.push_back(group);
      }
      waves[i].input = input;
    }
  }
}

// The rows of a group alone, counted from 0.
std::unique_ptr<MixedRows::OwnPass> OwnPassOf(const TenantRows& group,
                                              const models::MicroBatch& batch,
                                              models::SequenceStates& states) {
  auto own = std::make_unique<MixedRows::OwnPass>();
  for (int64_t row = group.begin; row < group.end(); ++row) {
    models::Segment segment = batch.segments[static_cast<size_t>(row)];
    segment.begin = row - group.begin;
    own->batch.segments.push_back(segment);
  }
  own->context.batch = &own->batch;
  own->context.sequences = &states;
  return own;
}

}  // namespace

MixedRows::MixedRows(TenantKernel kernel, torch::Dtype dtype, torch::Device device)
    : kernel_(kernel),
      dtype_(dtype),
      device_(device),
      on_host_(models::UsesHostKernels(at::empty({0}, at::device(device)))) {}

const models::SiteTable& MixedRows::Arrange(const models::MicroBatch& batch,
                                            std::vector<TenantRows> groups,
                                            models::SequenceStates& states) {
  own_passes_.clear();
  for (const TenantRows& group : groups) own_passes_.push_back(OwnPassOf(group, batch, states));
  // Rows without a tenant count too: a hidden state is copied with them.
  if (batch.num_rows() != num_rows_ || groups != groups_) {
    groups_ = std::move(groups);
    num_rows_ = batch.num_rows();
    Rebuild(states);
  }
  return table_;
}

void MixedRows::Rebuild(models::SequenceStates& states) {
  std::map<SiteId, std::vector<Wave>> sites;
  kept_.clear();
  if (!on_host_) device_edits_ = std::make_unique<DeviceEdits>(num_rows_, dtype_, device_);
  for (size_t group = 0; group < groups_.size(); ++group) {
    for (const auto& [site, hooks] : groups_[group].tenant->row_hooks()) {
      std::vector<Wave>& waves = sites[site];
      if (waves.size() < hooks.size()) waves.resize(hooks.size());
      for (size_t i = 0; i < hooks.size(); ++i)
        AddHook(group, {site, i}, hooks[i], states, &waves[i]);
    }
  }
  ShareInputs(&sites);
  table_ = models::SiteTable();
  bool calls_hooks = false;
  for (auto& [site, waves] : sites) {
    std::erase_if(waves, [](const Wave& wave) { return wave.empty(); });
    for (const Wave& wave : waves) calls_hooks = calls_hooks || !wave.others.empty();
    if (!waves.empty()) table_.Add(site, std::make_shared<MixedSite>(this, std::move(waves)));
  }
  if (!on_host_) PlaceTables(calls_hooks);
}

void MixedRows::PlaceTables(bool calls_hooks) {
  device_edits_->MakeTables();
  layout_.reset();
  const adapters::RowTables& tables = device_edits_->tables();
  if (!tables.by_address()) return;
  std::vector<int64_t> layout = device_edits_->Layout();
  if (table_memory_.size() >= kMaxLayouts) table_memory_.clear();
  torch::Tensor& memory = table_memory_[layout];
  const torch::Tensor contents = torch::tensor(tables.contents(), torch::kInt64);
  if (!memory.defined()) memory = at::empty_like(contents, at::device(device_));
  memory.copy_(contents.pin_memory(), /*non_blocking=*/true);
  device_edits_->PlaceAt(memory);
  if (calls_hooks) return;
  layout.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory.const_data_ptr())));
  layout_ = std::move(layout);
}

void MixedRows::AddOnDevice(const TenantRows& rows, const DeviceEdits::Key& key,
                            const RowHook& hook, models::SequenceStates& states, Wave* wave) {
  const RowEdit& edit = hook.edit;
  if (edit.kind == RowEdit::Kind::kNothing) return;
  wave->on_device = key;
  if (edit.kind == RowEdit::Kind::kLowRank)
    return device_edits_->AddLowRank(key, rows.begin, rows.end(), hook);
  for (int64_t row = rows.begin; row < rows.end(); ++row) {
    torch::Tensor scale = edit.scale;
    if (edit.owner != nullptr)
      scale = ScalesOf(edit, rows, row, states).narrow(0, edit.begin, edit.width);
    device_edits_->AddVectors(key, edit.at_input, row, scale, edit.bias);
  }
}

void MixedRows::AddHook(size_t group, const DeviceEdits::Key& key, const RowHook& hook,
                        models::SequenceStates& states, Wave* wave) {
  const TenantRows& rows = groups_[group];
  const RowEdit& edit = hook.edit;
  if (kernel_ == TenantKernel::kLoop || !rows.tenant->says_rows()) {
    wave->others.emplace_back(group, &hook);
  } else if (!on_host_) {
    AddOnDevice(rows, key, hook, states, wave);
  } else if (edit.kind == RowEdit::Kind::kLowRank) {
    wave->low_rank.push_back({.begin = rows.begin,
                              .end = rows.end(),
                              .rank = hook.a.size(0),
                              .a = hook.a.const_data_ptr<float>(),
                              .b_transposed = hook.b_transposed.const_data_ptr<float>(),
                              .factor = static_cast<float>(edit.factor)});
  } else if (edit.kind == RowEdit::Kind::kVectors) {
    AddVectors(rows, edit, states, wave);
  }
}

void MixedRows::AddVectors(const TenantRows& rows, const RowEdit& edit,
                           models::SequenceStates& states, Wave* wave) {
  auto& vectors = edit.at_input ? wave->input_vectors : wave->output_vectors;
  vectors.resize(static_cast<size_t>(num_rows_));
  for (int64_t row = rows.begin; row < rows.end(); ++row) {
    adapters::RowVectors& own = vectors[static_cast<size_t>(row)];
    if (edit.bias.defined()) own.bias = edit.bias.const_data_ptr<float>();
    if (edit.scale.defined()) own.scale = edit.scale.const_data_ptr<float>();
    if (edit.owner == nullptr) continue;
    own.scale = ScalesOf(edit, rows, row, states).const_data_ptr<float>() + edit.begin;
  }
}

const torch::Tensor& MixedRows::ScalesOf(const RowEdit& edit, const TenantRows& rows, int64_t row,
                                         models::SequenceStates& states) {
  const int64_t sequence = rows.sequences[static_cast<size_t>(row - rows.begin)];
  const torch::Tensor scales = states.Get(edit.owner, sequence);
  GRAFT_CHECK(scales.defined(),
              absl::StrCat("sequence ", sequence, " goes on without having begun"));
  kept_.push_back(scales.to(at::kFloat).contiguous());
  return kept_.back();
}

}  // namespace graft::trainer
