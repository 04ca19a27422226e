#!/bin/sh
# Build one kernel for TPU-MLIR, which calls this by name for every shape of fused attention that is new to it.
#
#   ppl_jit.sh SOURCE_TEXT FUNCTION INCLUDE_FOLDER OUTPUT_FOLDER CHIP [CONSTANTS]
#
# It stands in for the script of that name that TPU-MLIR brings, which needs CMake and make besides a C compiler and
# throws all output away. ppl-compile turns the kernel into C; the C is compiled to OUTPUT_FOLDER/lib/libFUNCTION.so,
# which the compiler loads to emit the chip's instructions. Its exit codes are ppl-compile's: 17 and 26 mean that the
# blocks do not fit in the chip's memory, and make the caller try smaller ones.
#
# Compilations that run side by side share OUTPUT_FOLDER: each works in a folder of its own, and the finished library
# gets its name by a rename, so none ever loads another's half.
set -u
source_text=$1 function=$2 include=$3 output=$4 chip=$5 constants=${6:-}
ppl=$PPL_PROJECT_ROOT
deps=$ppl/deps
work=$output/work.$$
mkdir -p "$work" "$output/lib" || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
exec >>"$output/jit.log" 2>&1

"$ppl/bin/ppl-compile" "$source_text" --I "$include" --x ir --chip "$chip" "-D__${chip}__" --O3 --desc --device \
  ${constants:+--const-arg "$constants"} --function "$function" -o "$work" || exit

# -Wl,--no-undefined as the vendor has it: a missing symbol fails here, not when the kernel is loaded.
"${CC:-cc}" -shared -fPIC -O1 -DDEBUG -D__bm1684x__ "-D__${chip}__" \
  -I"$work/include" \
  -I"$deps/common/dev/kernel" -I"$deps/common/dev/utils/include" -I"$deps/common/host/include" \
  -I"$deps/chip/$chip/TPU1686/kernel/include" -I"$deps/chip/$chip/TPU1686/common/include" \
  "$work"/device/*.c "$deps/common/dev/utils/src/ppl_helper.c" \
  "$TPUC_ROOT/lib/libbackend_bm1684x.so" -Wl,--no-undefined -Wl,-rpath,"$TPUC_ROOT/lib" -lm \
  -o "$work/kernel.so" || exit

mv -f "$work/kernel.so" "$output/lib/lib$function.so"
