// Tells how far down a backward pass has come: "the gradients of all parameters of layers from
// `layer` on are final". Used by the executor for the reduction that runs beside the rest of the
// pass (gradient_reduction.h).
//
// Why it is true: it says so when autograd gives the gradient of a layer's input to what made it.
// Autograd runs what was made last first, and adds to a parameter's gradient before anything else,
// so all of the layer is done by then. gradient_reduction_test.cc holds every method on every
// backbone to it.
#pragma once

#include <functional>
#include <memory>

#include "models/site.h"

namespace graft::sharding {

class LayerWatch {
 public:
  // On the thread of the backward pass: autograd's own for a GPU.
  using Listener = std::function<void(int layer)>;

  LayerWatch();
  // Before anything is run. A layer whose input has no gradient is never told.
  void Watch(models::SiteTable& table, int layer);

  // Listens to the backward passes while it lives; both must outlive it. Null or empty: nobody.
  class Scope {
   public:
    Scope(LayerWatch& watch, const Listener* listener);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const Listener*& listener_;
  };

 private:
  class Hook;
  // What the hooks of gradients share, which outlive a pass.
  std::shared_ptr<const Listener*> listener_;
};

}  // namespace graft::sharding
