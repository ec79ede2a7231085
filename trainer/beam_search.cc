#include "trainer/beam_search.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace graft::trainer {
namespace {

constexpr float kOutOfReach = -1e9f;  // transformers adds it to what must not be selected

}  // namespace

std::vector<int64_t> TopIndices(const std::vector<float>& values, int64_t count) {
  std::vector<std::pair<float, int64_t>> queue;
  for (const float value : values) queue.emplace_back(value, queue.size());
  const auto before = [](const auto& x, const auto& y) {
    return (std::isnan(x.first) && !std::isnan(y.first)) || x.first > y.first;
  };
  // Where ties end up follows from the algorithm, so this is the one of at::topk.
  if (count * 64 <= static_cast<int64_t>(queue.size())) {
    std::partial_sort(queue.begin(), queue.begin() + count, queue.end(), before);
  } else {
    std::nth_element(queue.begin(), queue.begin() + count - 1, queue.end(), before);
    std::sort(queue.begin(), queue.begin() + count - 1, before);
  }
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < count; ++i) indices.push_back(queue[static_cast<size_t>(i)].second);
  return indices;
}

BeamSearch::BeamSearch(const Options& options)
    : options_(options),
      running_(static_cast<size_t>(options.beams), Beam{{}, kOutOfReach, 0}),
      finished_(static_cast<size_t>(options.beams), Finished{{}, kOutOfReach, false}) {
  running_[0].score = 0;
}

int64_t BeamSearch::CandidatesPerStep(int64_t beams, const std::vector<int64_t>& end_tokens) {
  return beams * std::max<int64_t>(2, 1 + static_cast<int64_t>(end_tokens.size()));
}

void BeamSearch::Advance(const std::vector<BeamCandidate>& best) {
  ++made_;
  std::vector<bool> ends;
  std::vector<float> scores;
  for (const BeamCandidate& candidate : best) {
    ends.push_back(Ends(candidate.token));
    scores.push_back(candidate.score + (ends.back() ? kOutOfReach : 0.0f));
  }
  finished_ = BestFinished(best, ends);
  std::vector<Beam> next;
  for (const int64_t i : TopIndices(scores, options_.beams)) {
    next.push_back(Continued(best[static_cast<size_t>(i)]));
    next.back().score = scores[static_cast<size_t>(i)];
  }
  running_ = std::move(next);
  done_ = !CanImprove() || std::find(ends.begin(), ends.end(), false) == ends.end();
}

bool BeamSearch::Ends(int64_t token) const {
  return made_ >= options_.max_new_tokens ||
         std::find(options_.end_tokens.begin(), options_.end_tokens.end(), token) !=
             options_.end_tokens.end();
}

Beam BeamSearch::Continued(const BeamCandidate& candidate) const {
  Beam beam = {running_[static_cast<size_t>(candidate.beam)].tokens, candidate.score,
               candidate.beam};
  beam.tokens.push_back(candidate.token);
  return beam;
}

// What was finished and what this step finishes. Only the first `beams` candidates count: the
// others are there to go on in their place.
std::vector<BeamSearch::Finished> BeamSearch::BestFinished(const std::vector<BeamCandidate>& best,
                                                           const std::vector<bool>& ends) const {
  std::vector<Finished> merged = finished_;
  for (size_t i = 0; i < best.size(); ++i) {
    const bool found = ends[i] && static_cast<int64_t>(i) < options_.beams;
    const float score = best[i].score / static_cast<float>(made_);
    merged.push_back({found ? Continued(best[i]).tokens : std::vector<int64_t>(),
                      score + (found ? 0.0f : kOutOfReach), found});
  }
  std::vector<float> scores;
  for (const Finished& sequence : merged) scores.push_back(sequence.score);
  std::vector<Finished> kept;
  for (const int64_t i : TopIndices(scores, options_.beams)) {
    kept.push_back(std::move(merged[static_cast<size_t>(i)]));
  }
  return kept;
}

// The best running beam, divided by the length that it has now, against the worst finished one.
bool BeamSearch::CanImprove() const {
  const bool all_found = std::all_of(finished_.begin(), finished_.end(),
                                     [](const Finished& sequence) { return sequence.found; });
  const float worst = all_found ? finished_.back().score : kOutOfReach;
  return running_[0].score / static_cast<float>(made_) > worst;
}

}  // namespace graft::trainer
