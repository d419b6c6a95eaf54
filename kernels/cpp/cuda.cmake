# Embeds the GPU kernels: the binaries as they are, the manifest as a table. Needs only CMake.
set(cuda_dir ${PROJECT_SOURCE_DIR}/kernels/cuda)
set(made ${CMAKE_CURRENT_BINARY_DIR}/cuda)
file(READ ${cuda_dir}/manifest.json manifest)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${cuda_dir}/manifest.json
  ${cuda_dir}/kernels.tar.xz)
string(JSON archive GET "${manifest}" archive)
file(ARCHIVE_EXTRACT INPUT ${cuda_dir}/${archive} DESTINATION ${made})

string(JSON cubin_80 GET "${manifest}" cubins 80)
string(JSON cubin_90 GET "${manifest}" cubins 90)
string(JSON ptx GET "${manifest}" ptx)
file(WRITE ${made}/fula_binaries.cpp
"// Generated: the device binaries, byte for byte; a zero ends the PTX.
#define EMBED(name, file) \\
  __asm__(\".section .rodata\\n.global \" #name \"\\n.hidden \" #name \"\\n.balign 64\\n\" #name \\
          \":\\n.incbin \\\"\" file \"\\\"\\n.byte 0\\n.previous\\n\")
EMBED(fula_cubin_80, \"${made}/${cubin_80}\");
EMBED(fula_cubin_90, \"${made}/${cubin_90}\");
EMBED(fula_ptx, \"${made}/${ptx}\");
")

string(JSON kernels GET "${manifest}" kernels)
string(JSON count LENGTH "${kernels}")
math(EXPR last "${count} - 1")
set(table "// Generated from manifest.json.\n")
foreach(i RANGE ${last})
  string(JSON kernel GET "${kernels}" ${i})
  string(JSON name GET "${kernel}" name)
  string(JSON threads GET "${kernel}" threads)
  string(JSON shared_80 GET "${kernel}" shared 80)
  string(JSON shared_90 GET "${kernel}" shared 90)
  string(JSON arguments GET "${kernel}" arguments)
  string(REGEX REPLACE "\\[[ \n]*\"([^\"]+)\"[ ]*,[ \n]*\"([^\"]+)\"[ \n]*\\]" "\\1:\\2" arguments
    "${arguments}")
  string(REGEX REPLACE "^\\[|[ \n]|\\]$" "" arguments "${arguments}")
  string(JSON constants GET "${kernel}" constants)
  string(REGEX REPLACE "[{}\" \n]" "" constants "${constants}")
  string(REPLACE ":" "=" constants "${constants}")
  string(APPEND table
    "{\"${name}\", ${threads}, ${shared_80}, ${shared_90}, \"${arguments},\", \"${constants},\"},\n")
endforeach()
file(WRITE ${made}/fula_kernels.inc "${table}")

target_sources(fula_core PRIVATE ${made}/fula_binaries.cpp src/cuda/driver.cpp
  src/cuda/elementwise.cpp src/cuda/lane_norm.cpp src/cuda/session.cpp src/cuda/stitch_hint.cpp)
set_source_files_properties(${made}/fula_binaries.cpp PROPERTIES OBJECT_DEPENDS
  "${made}/${cubin_80};${made}/${cubin_90};${made}/${ptx}")
set_source_files_properties(src/cuda/session.cpp PROPERTIES INCLUDE_DIRECTORIES ${made})
target_link_libraries(fula_core PRIVATE ${CMAKE_DL_LIBS})
