# cmake --install BUILD --prefix DIR [--component comm | development | runtime]
#   comm         the libraries and headers of base/ and comm/: enough for a program that uses graft's communicators
#   development  all libraries and headers, for a program that embeds graft: find_package(graft)
#   runtime      the graft program, the Python tools and the recipes
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/graft)
set(_comm_libraries graft_base graft_watch graft_comm)
get_property(_other_libraries GLOBAL PROPERTY GRAFT_LIBRARIES)
list(REMOVE_ITEM _other_libraries ${_comm_libraries})

# Two export files, so that a program that wants only the communicators needs no LibTorch.
install(TARGETS ${_comm_libraries} EXPORT graftCommTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT comm)
install(EXPORT graftCommTargets NAMESPACE graft:: DESTINATION ${_package_dir} COMPONENT comm)
if(_other_libraries)
  install(TARGETS ${_other_libraries} EXPORT graftTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
  install(EXPORT graftTargets NAMESPACE graft:: DESTINATION ${_package_dir} COMPONENT development)
endif()

# Headers keep their paths. Those that include nccl.h are comm/'s own.
install(DIRECTORY base comm DESTINATION include/graft COMPONENT comm
  FILES_MATCHING PATTERN "*.h" PATTERN "nccl_channel.h" EXCLUDE PATTERN "nccl_handle.h" EXCLUDE)
install(DIRECTORY models adapters sharding trainer launch DESTINATION include/graft COMPONENT development
  FILES_MATCHING PATTERN "*.h" PATTERN "recipes" EXCLUDE PATTERN "graft_*" EXCLUDE PATTERN "__pycache__" EXCLUDE)

set(GRAFT_WITH_NCCL OFF)
if(TARGET graft::nccl)
  set(GRAFT_WITH_NCCL ON)
endif()
configure_package_config_file(cmake/graftConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/graftConfig.cmake"
  INSTALL_DESTINATION ${_package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/graftConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/graftConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/graftConfigVersion.cmake"
  cmake/GraftTorch.cmake cmake/GraftNccl.cmake DESTINATION ${_package_dir} COMPONENT comm)

# setup.sh, test.sh and quickstart.sh work on the source tree and stay there.
if(TARGET graft)
  install(TARGETS graft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime)
endif()
install(DIRECTORY launch DESTINATION ${CMAKE_INSTALL_DATADIR}/graft COMPONENT runtime USE_SOURCE_PERMISSIONS
  FILES_MATCHING PATTERN "*.py" PATTERN "*.sh" PATTERN "*.sbatch" PATTERN "*.yaml" PATTERN "requirements*.txt"
  PATTERN "setup.sh" EXCLUDE PATTERN "test.sh" EXCLUDE PATTERN "quickstart.sh" EXCLUDE PATTERN "__pycache__" EXCLUDE)
