// Runs build/graft as a user does, and keeps what it said. Used by the tests of the command line
// and of malformed input.
#pragma once

#include <string>
#include <vector>

namespace graft::testing {

struct ProgramResult {
  int code = -1;  // exit code; 128 + signal when one ended it
  std::string out, err;
  double seconds = 0;
  long peak_kib = 0;  // largest resident set of a process of the run
  // The last line of stderr that the program itself wrote.
  std::string LastLine() const;
};

// `ranks` above 1: under mpirun. Ends the run after `limit_seconds` (code 137).
ProgramResult RunGraft(const std::vector<std::string>& arguments, int ranks = 1,
                       int limit_seconds = 60);

// What reliability.md 7 asks of a malformed input on one rank: the exit code, one last line of that
// kind with these parts, nothing on stdout, little time (CI allows five times the 2 s) and memory.
void ExpectRefused(const ProgramResult& result, int code, const std::string& kind,
                   const std::vector<std::string>& parts);

}  // namespace graft::testing
