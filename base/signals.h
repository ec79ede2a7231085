// Requests from signals (reliability.md 3.1, 4.2). Only `train` and `score` install the handlers;
// their loops read StopRequested at step boundaries, the watchdog's thread reads DumpRequests. A
// handler only stores into an atomic.
#pragma once

namespace graft {

// USR1, TERM and the first INT request a stop; the second INT has its default action. HUP counts as
// TERM when stderr is a terminal, else it is ignored. USR2 requests a dump of the flight recorder.
// Call before MPI starts.
void InstallStopHandlers();
bool StopRequested();
// How many USR2 have come.
int DumpRequests();
// What the handlers do: for programs that embed graft.
void RequestStop();
// In an auxiliary thread: leaves these signals to the main thread.
void BlockStopSignals();

}  // namespace graft
