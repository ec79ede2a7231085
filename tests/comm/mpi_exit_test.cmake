# cmake -DMPIEXEC=... -DPROGRAM=mpi_exit_program -DCONTRACT=comm_mpi_test -P mpi_exit_test.cmake
# What mpirun returns, and how soon, when a rank of a job of two ends in each of its ways.
cmake_minimum_required(VERSION 3.25)
function(expect name code pattern)
  execute_process(COMMAND ${MPIEXEC} -q -n 2 --oversubscribe --allow-run-as-root --bind-to none
                          --mca mpi_yield_when_idle 1 ${ARGN}
                  RESULT_VARIABLE result ERROR_VARIABLE text OUTPUT_VARIABLE text TIMEOUT 30)
  if(NOT result EQUAL code)
    message(FATAL_ERROR "${name}: mpirun returned ${result}, expected ${code}\n${text}")
  endif()
  if(NOT text MATCHES "${pattern}")
    message(FATAL_ERROR "${name}: output does not match '${pattern}':\n${text}")
  endif()
  message(STATUS "${name}: ${result}")
endfunction()

expect(clean 0 "" ${PROGRAM} clean)
expect(stopped 75 "" ${PROGRAM} stopped)
expect(abort 76 "" ${PROGRAM} abort)
expect(abort-thread 76 "" ${PROGRAM} abort-thread)
expect(vanish 3 "" ${PROGRAM} vanish)
expect(hang 76 "communicator world \\(mpi, 2 ranks\\): Barrier on rank 0: no answer from rank 1 for 1\\.. s"
       ${PROGRAM} hang)
# A test that fails on rank 1 only must fail the whole job.
set(ENV{GRAFT_TEST_FAIL_RANK} 1)
expect(failing-test 1 "actual: .1. vs .1." ${CONTRACT}
       --gtest_filter=MpiCommunicator.HarnessReportsOneRanksFailure)
