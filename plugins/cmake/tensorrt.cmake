# Find TensorRT: NRD_TENSORRT_INCLUDE, NRD_TENSORRT_VERSION and NRD_TENSORRT_MAJOR of its headers, NRD_TENSORRT_LIBRARY.
include_guard(GLOBAL)

set(TENSORRT_ROOT "" CACHE PATH "Folder with TensorRT's include/ and lib/; empty: the system's")

# Version of the headers in `folder`, which newer versions name by way of a second macro.
function(nrd_tensorrt_version folder result)
  file(STRINGS ${folder}/NvInferVersion.h lines REGEX "define +(NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)[A-Z_]* +[0-9]+")
  if(NOT lines MATCHES "_MAJOR[A-Z_]* +([0-9]+)")
    message(FATAL_ERROR "${folder}/NvInferVersion.h names no version of TensorRT")
  endif()
  if(CMAKE_MATCH_1 LESS 10)
    message(FATAL_ERROR "${folder}: got headers of major ${CMAKE_MATCH_1}, expected TensorRT 10.3 or newer (TensorRT-RTX takes no plugin)")
  endif()
  string(REGEX MATCH "_MAJOR[A-Z_]* +([0-9]+).*_MINOR[A-Z_]* +([0-9]+).*_PATCH[A-Z_]* +([0-9]+)" _ "${lines}")
  set(${result} ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3} PARENT_SCOPE)
endfunction()

unset(NRD_TENSORRT_INCLUDE CACHE) # TENSORRT_ROOT may have changed
if(TENSORRT_ROOT)
  file(GLOB tensorrt_folders ${TENSORRT_ROOT}/include ${TENSORRT_ROOT}/include/*-linux-gnu ${TENSORRT_ROOT}/targets/*/include)
  find_path(NRD_TENSORRT_INCLUDE NvInferRuntime.h PATHS ${tensorrt_folders} NO_DEFAULT_PATH)
  if(NOT NRD_TENSORRT_INCLUDE)
    message(FATAL_ERROR "TENSORRT_ROOT: got ${TENSORRT_ROOT}, expected a folder with include/NvInferRuntime.h")
  endif()
else()
  find_path(NRD_TENSORRT_INCLUDE NvInferRuntime.h)
endif()

if(NRD_TENSORRT_INCLUDE)
  nrd_tensorrt_version(${NRD_TENSORRT_INCLUDE} NRD_TENSORRT_VERSION)
  string(REGEX MATCH "^[0-9]+" NRD_TENSORRT_MAJOR ${NRD_TENSORRT_VERSION})
  file(GLOB tensorrt_folders ${TENSORRT_ROOT}/lib ${TENSORRT_ROOT}/lib/*-linux-gnu ${TENSORRT_ROOT}/targets/*/lib)
  # Where TensorRT came with pip the library has its full name only.
  find_library(NRD_TENSORRT_LIBRARY NAMES nvinfer libnvinfer.so.${NRD_TENSORRT_MAJOR} HINTS ${tensorrt_folders}
    DOC "libnvinfer.so")
endif()
