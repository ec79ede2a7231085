#include "sharding/layer_watch.h"

#include <utility>

#include <torch/types.h>

namespace graft::sharding {

class LayerWatch::Hook : public models::SiteHook {
 public:
  explicit Hook(std::shared_ptr<const Listener*> listener) : listener_(std::move(listener)) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    if (y.requires_grad()) {
      // A leaf (the input of a stage, or of a layer that runs again) takes its gradient as soon as
      // parameters do; behind a step of its own it comes after them.
      if (y.is_leaf()) y = y.view_as(y);
      y.register_hook([listener = listener_, layer = context.layer](const torch::Tensor&) {
        if (*listener != nullptr) (**listener)(layer);
      });
    }
    return y;
  }

 private:
  const std::shared_ptr<const Listener*> listener_;
};

LayerWatch::LayerWatch() : listener_(std::make_shared<const Listener*>(nullptr)) {}

// First, so that what other hooks do at the same place is above it in the backward pass.
void LayerWatch::Watch(models::SiteTable& table, int layer) {
  table.AddFirst({layer, models::Role::kLayerIn}, std::make_shared<Hook>(listener_));
}

LayerWatch::Scope::Scope(LayerWatch& watch, const Listener* listener)
    : listener_(*watch.listener_) {
  if (listener != nullptr && *listener) listener_ = listener;
}

LayerWatch::Scope::~Scope() { listener_ = nullptr; }

}  // namespace graft::sharding
