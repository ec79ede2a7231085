# Target graft::torch: LibTorch's CPU half (libtorch_cpu, libc10). The CUDA half is loaded at run time, when a recipe asks
# for a GPU, so that CPU jobs start fast and stay small.
#
# find_package(Torch) of the wheel needs a CUDA toolkit just to configure; the include and lib folders are all that is needed here.
# Installed with the package, so that graftConfig.cmake finds LibTorch the same way. Looked for in this order: -DGRAFT_LIBTORCH=DIR, CMAKE_PREFIX_PATH (a site's own LibTorch), the project's venv.
set(GRAFT_LIBTORCH "" CACHE PATH "LibTorch folder: the one with include/ and lib/ (empty = search)")
set(_torch_root "${GRAFT_LIBTORCH}")
if(NOT _torch_root)
  find_library(_torch_cpu_found NAMES torch_cpu PATHS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES lib libtorch/lib NO_DEFAULT_PATH NO_CACHE)
  if(_torch_cpu_found)
    get_filename_component(_torch_root "${_torch_cpu_found}/../.." ABSOLUTE)
  endif()
endif()
if(NOT _torch_root)
  foreach(_venv "$ENV{GRAFT_VENV}" "${CMAKE_SOURCE_DIR}/.venv")
    file(GLOB _candidates "${_venv}/lib/python3*/site-packages/torch")
    if(_venv AND _candidates AND NOT _torch_root)
      list(GET _candidates 0 _torch_root)
    endif()
  endforeach()
endif()
if(NOT EXISTS "${_torch_root}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch not found. Run ./launch/setup.sh, or pass -DGRAFT_LIBTORCH=DIR or -DCMAKE_PREFIX_PATH=DIR "
                      "(a folder with include/ and lib/libtorch_cpu.so).")
endif()
get_filename_component(_torch_root "${_torch_root}" REALPATH)
message(STATUS "LibTorch: ${_torch_root}")

# The wheel's own dependencies lie beside it (site-packages/nvidia/*/lib); a plain LibTorch archive has them in lib/.
file(GLOB _nvidia_libs "${_torch_root}/../nvidia/*/lib")
set(GRAFT_TORCH_RPATH "${_torch_root}/lib" ${_nvidia_libs})
add_library(graft::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(graft::torch SYSTEM INTERFACE
  "${_torch_root}/include" "${_torch_root}/include/torch/csrc/api/include")
target_link_libraries(graft::torch INTERFACE "${_torch_root}/lib/libtorch_cpu.so" "${_torch_root}/lib/libc10.so")
# LibTorch brings its own libgomp (found by RPATH), so only the flag is wanted here: at::parallel_for is a header template that
# needs it, and linking the compiler's libgomp by path would make two of them.
target_compile_options(graft::torch INTERFACE -fopenmp)
target_link_options(graft::torch INTERFACE -fopenmp)
foreach(_dir ${GRAFT_TORCH_RPATH})
  target_link_options(graft::torch INTERFACE "-Wl,-rpath-link,${_dir}")
endforeach()
set(GRAFT_TORCH_ROOT "${_torch_root}")
