// `graft inspect PATH...`
#include <cstdio>

#include "base/status.h"
#include "launch/commands.h"
#include "trainer/inspect.h"

namespace graft::launch {

absl::Status InspectCommand(CommandContext& context) {
  bool first = true;
  for (const std::string& path : context.paths) {
    GRAFT_ASSIGN_OR_RETURN(const std::string text, trainer::DescribeFolder(path));
    std::printf("%s%s", first ? "" : "\n", text.c_str());
    first = false;
  }
  return absl::OkStatus();
}

}  // namespace graft::launch
