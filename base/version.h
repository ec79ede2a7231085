// The version of graft, from the file VERSION.
#pragma once

namespace graft {

const char* Version();

}  // namespace graft
