// The one way to log: glog's LOG, VLOG, CHECK. Lines go to stderr with rank and level.
//
// LibTorch defines LOG, CHECK, DCHECK, VLOG of its own (c10/util/Logging.h) and whichever header comes last wins silently:
// with glog first, LOG(INFO) prints nothing. So LibTorch's header comes first here, its macros go, then glog.
#pragma once

#if __has_include(<c10/util/Logging.h>)
#include <c10/util/Logging.h>
#endif
#undef LOG
#undef LOG_IF
#undef VLOG
#undef VLOG_IF
#undef VLOG_IS_ON
#undef DLOG
#undef CHECK
#undef CHECK_EQ
#undef CHECK_NE
#undef CHECK_LE
#undef CHECK_LT
#undef CHECK_GE
#undef CHECK_GT
#undef CHECK_NOTNULL
#undef CHECK_OP
#undef DCHECK
#undef DCHECK_EQ
#undef DCHECK_NE
#undef DCHECK_LE
#undef DCHECK_LT
#undef DCHECK_GE
#undef DCHECK_GT
#undef DCHECK_NOTNULL
#undef LOG_EVERY_MS
#undef LOG_EVERY_N
#undef LOG_FIRST_N
#include <glog/logging.h>

namespace graft {

// Call once, first thing in main: glog to stderr only, one short prefix.
void InitLogging(const char* program);
// From now on log lines start with this rank; -1 = no rank in the line.
void SetLogRank(int rank);

}  // namespace graft
