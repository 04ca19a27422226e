#!/bin/sh
# Build one kernel for TPU-MLIR, which calls this by name for every shape of fused attention that is new to it.
#
#   ppl_jit.sh SOURCE_TEXT FUNCTION INCLUDE_FOLDER OUTPUT_FOLDER CHIP [CONSTANTS]
#
# It stands in for the script of that name that TPU-MLIR brings, which needs CMake and make besides a C compiler and
# throws all output away. ppl-compile turns the kernel into C; the C is compiled to OUTPUT_FOLDER/lib/libFUNCTION.so,
# which the compiler loads to emit the chip's instructions. Its exit codes are ppl-compile's: 17 and 26 mean that the
# blocks do not fit in the chip's memory, and make the caller try smaller ones.
set -u
source_text=$1 function=$2 include=$3 output=$4 chip=$5 constants=${6:-}
ppl=$PPL_PROJECT_ROOT
deps=$ppl/deps
exec >>"$output/jit.log" 2>&1

"$ppl/bin/ppl-compile" "$source_text" --I "$include" --x ir --chip "$chip" "-D__${chip}__" --O3 --desc --device \
  ${constants:+--const-arg "$constants"} --function "$function" -o "$output"
code=$?
[ "$code" -eq 0 ] || exit "$code"

mkdir -p "$output/lib"
# -Wl,--no-undefined as the vendor has it: a missing symbol fails here, not when the kernel is loaded.
exec "${CC:-cc}" -shared -fPIC -O1 -DDEBUG -D__bm1684x__ "-D__${chip}__" \
  -I"$output/include" \
  -I"$deps/common/dev/kernel" -I"$deps/common/dev/utils/include" -I"$deps/common/host/include" \
  -I"$deps/chip/$chip/TPU1686/kernel/include" -I"$deps/chip/$chip/TPU1686/common/include" \
  "$output"/device/*.c "$deps/common/dev/utils/src/ppl_helper.c" \
  "$TPUC_ROOT/lib/libbackend_bm1684x.so" -Wl,--no-undefined -Wl,-rpath,"$TPUC_ROOT/lib" -lm \
  -o "$output/lib/lib$function.so"
