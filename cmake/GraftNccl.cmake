# Target graft::nccl when NCCL and the CUDA runtime headers are found: the toolkit's, a site's, or the wheel's. Installed with the
# package, so that graftConfig.cmake finds them the same way.
if(NOT GRAFT_NCCL)
  return()
endif()
file(GLOB _wheel_dirs "${GRAFT_TORCH_ROOT}/../nvidia/nccl" "${GRAFT_TORCH_ROOT}/../nvidia/cu1*" "${GRAFT_TORCH_ROOT}/../nvidia/cuda_runtime")
find_path(GRAFT_NCCL_INCLUDE nccl.h HINTS ${_wheel_dirs} PATH_SUFFIXES include)
find_library(GRAFT_NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${_wheel_dirs} PATH_SUFFIXES lib)
# crt/ is a wheel of its own (nvidia-cuda-crt): a folder without it does not compile.
find_path(GRAFT_CUDA_INCLUDE crt/host_config.h HINTS ${_wheel_dirs} PATHS /usr/local/cuda PATH_SUFFIXES include)
find_library(GRAFT_CUDART_LIBRARY NAMES cudart libcudart.so.13 libcudart.so.12 HINTS ${_wheel_dirs} PATHS /usr/local/cuda PATH_SUFFIXES lib lib64)
if(GRAFT_NCCL_INCLUDE AND GRAFT_NCCL_LIBRARY AND GRAFT_CUDA_INCLUDE AND GRAFT_CUDART_LIBRARY)
  message(STATUS "NCCL: ${GRAFT_NCCL_LIBRARY}")
  add_library(graft::nccl INTERFACE IMPORTED GLOBAL)
  target_include_directories(graft::nccl SYSTEM INTERFACE "${GRAFT_NCCL_INCLUDE}" "${GRAFT_CUDA_INCLUDE}")
  target_link_libraries(graft::nccl INTERFACE "${GRAFT_NCCL_LIBRARY}" "${GRAFT_CUDART_LIBRARY}")
else()
  message(STATUS "NCCL: not found, building without the NCCL communicator")
endif()
