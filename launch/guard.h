// The one place that catches. Every command runs inside of it: it logs, prints the last line of
// interfaces.md 1, stops the peers when one rank is in trouble, and gives the exit code. Used by
// main.cc; a program that embeds graft may use it too.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace graft::launch {

// Runs `body` on every rank of `all` and returns the exit code, the same one on every rank that
// returns.
// - A returned status: all ranks compare codes; the lowest failing rank prints the line; the
// largest code is returned.
// - An exception: this rank prints the line, flushes and calls all.Abort(code) when there are other
// ranks. `where` (may be empty) adds to the log line of an exception what only the command knows:
// grid coordinates, step. `before_abort` (may be empty) runs before the line of an exception.
int RunGuarded(comm::Communicator& all, const std::function<absl::Status()>& body,
               const std::function<std::string()>& where = {},
               const std::function<void(const absl::Status&)>& before_abort = {});

// "graft: error: <kind>: <message>" on stderr, in one write, or "graft: stopped: ..." for a stop on
// request.
void PrintLastLine(const absl::Status& status);
// The same from a thread that must not wait for locks of the main thread: no stdio.
void WriteLastLine(const absl::Status& status);

}  // namespace graft::launch
