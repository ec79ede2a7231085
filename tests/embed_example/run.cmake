# cmake -DBUILD=graft's build folder -DWORK=scratch folder -DMPIEXEC=mpirun -DGENERATOR=... -P run.cmake
# Installs graft's communicators into a fresh prefix, builds the example against that prefix alone and runs it on 2 ranks.
cmake_minimum_required(VERSION 3.25)
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN} returned ${result}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK}")
run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${WORK}/prefix" --component comm)
run(${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}" -B "${WORK}/build" -G "${GENERATOR}"
    "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
run(${CMAKE_COMMAND} --build "${WORK}/build")
run(${MPIEXEC} -q -n 2 --oversubscribe --allow-run-as-root --bind-to none "${WORK}/build/embed_example")
if(NOT output MATCHES "ranks 2 sum 3\n")
  message(FATAL_ERROR "the example printed:\n${output}")
endif()

# Headers must not lead into the source tree, and mpi.h is included by one of them only.
file(GLOB_RECURSE headers "${WORK}/prefix/include/*.h")
foreach(header ${headers})
  file(STRINGS "${header}" lines REGEX "#include <(mpi|nccl)\\.h>")
  if(lines AND NOT header MATCHES "comm/mpi_embed.h$")
    message(FATAL_ERROR "${header} includes ${lines}")
  endif()
endforeach()
