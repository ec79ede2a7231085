// Stop requests from signals (reliability.md 3.1). Only `train` installs the handlers; the training
// loop reads StopRequested at step boundaries. A handler only stores into an atomic.
#pragma once

namespace graft {

// USR1, TERM and the first INT request a stop; the second INT has its default action. HUP counts as
// TERM when stderr is a terminal, else it is ignored. Call before MPI starts.
void InstallStopHandlers();
bool StopRequested();
// What the handlers do: for programs that embed graft.
void RequestStop();
// In an auxiliary thread: leaves these signals to the main thread.
void BlockStopSignals();

}  // namespace graft
