# graft_library(NAME sources... [TORCH] [DEPS ...])  one folder, one library; TORCH: links LibTorch and uses the shared precompiled header
# graft_test(NAME sources... [TORCH] [LABELS ...] [DEPS ...])  one GoogleTest program
# graft_mpi_test(NAME PROGRAM program RANKS n [ARGS ...])  runs a built program under mpirun
set(GRAFT_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Werror)

# What test programs see. Under MPI leaks are looked for with whole stacks (slow), so that those of its plugins can be told apart.
set(GRAFT_TEST_ENVIRONMENT "OMP_NUM_THREADS=1" "GRAFT_SOURCE_DIR=${CMAKE_SOURCE_DIR}" "GRAFT_BINARY_DIR=${CMAKE_BINARY_DIR}")
set(GRAFT_MPI_TEST_ENVIRONMENT ${GRAFT_TEST_ENVIRONMENT} "OMP_WAIT_POLICY=PASSIVE")
if(GRAFT_SANITIZE MATCHES "address")
  list(APPEND GRAFT_MPI_TEST_ENVIRONMENT "ASAN_OPTIONS=fast_unwind_on_malloc=0"
    "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/testing/leaks.supp:print_suppressions=0")
endif()

# LibTorch headers take about 15 s to parse; compile them once.
if(NOT GRAFT_SANITIZE)
  add_library(graft_torch_pch OBJECT "${CMAKE_CURRENT_LIST_DIR}/torch_pch.cc")
  target_link_libraries(graft_torch_pch PUBLIC graft::torch)
  target_compile_options(graft_torch_pch PRIVATE ${GRAFT_WARNINGS})
  target_precompile_headers(graft_torch_pch PRIVATE "${CMAKE_CURRENT_LIST_DIR}/torch_pch.h")
endif()

function(_graft_common target torch)
  target_include_directories(${target} PUBLIC "$<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>" "$<INSTALL_INTERFACE:include/graft>")
  target_compile_options(${target} PRIVATE ${GRAFT_WARNINGS})
  if(torch)
    target_link_libraries(${target} PUBLIC graft::torch)
    target_precompile_headers(${target} REUSE_FROM graft_torch_pch)
    # One precompiled header serves libraries and programs only when both are compiled alike.
    get_target_property(_type ${target} TYPE)
    if(_type STREQUAL "EXECUTABLE")
      set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${target} PRIVATE -fPIC)
    endif()
  elseif(GRAFT_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${GRAFT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${GRAFT_SANITIZE})
  endif()
endfunction()

function(graft_library name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPS" ${ARGN})
  if(ARG_TORCH AND GRAFT_SANITIZE)
    return()  # LibTorch is not built with sanitizers: the sanitizer presets build what links without it
  endif()
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  add_library(graft::${name} ALIAS ${name})
  _graft_common(${name} "${ARG_TORCH}")
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  set_property(GLOBAL APPEND PROPERTY GRAFT_LIBRARIES ${name})
endfunction()

# GoogleTest and the library's headers are half of what a test's compilation takes; programs are position independent as executables are.
if(GRAFT_TESTS)
  add_library(graft_test_pch OBJECT "${CMAKE_CURRENT_LIST_DIR}/test_pch.cc")
  _graft_common(graft_test_pch "")
  set_target_properties(graft_test_pch PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(graft_test_pch PRIVATE -O0 -fPIE)
  target_link_libraries(graft_test_pch PRIVATE GTest::gmock GTest::gtest nlohmann_json::nlohmann_json absl::status absl::statusor absl::strings)
  target_precompile_headers(graft_test_pch PRIVATE "${CMAKE_CURRENT_LIST_DIR}/test_pch.h")
endif()

function(graft_test name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPS;LABELS" ${ARGN})
  if(ARG_TORCH AND GRAFT_SANITIZE)
    return()
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  _graft_common(${name} "${ARG_TORCH}")
  # A test spends its time in the libraries; its own code compiles faster so. (-O0 would not fit LibTorch's precompiled header.)
  if(ARG_TORCH)
    target_compile_options(${name} PRIVATE "$<$<CONFIG:Release>:-O1>")
  else()
    target_compile_options(${name} PRIVATE -O0)
    target_precompile_headers(${name} REUSE_FROM graft_test_pch)
  endif()
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600
    ENVIRONMENT "${GRAFT_TEST_ENVIRONMENT}")
endfunction()

function(graft_mpi_test name)
  cmake_parse_arguments(ARG "" "PROGRAM;RANKS" "ARGS;LABELS" ${ARGN})
  add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} -q ${MPIEXEC_NUMPROC_FLAG} ${ARG_RANKS} --oversubscribe --allow-run-as-root
    --bind-to none --mca mpi_yield_when_idle 1 $<TARGET_FILE:${ARG_PROGRAM}> ${ARG_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "mpi;${ARG_LABELS}" TIMEOUT 300 PROCESSORS 2
    ENVIRONMENT "${GRAFT_MPI_TEST_ENVIRONMENT}")
endfunction()
