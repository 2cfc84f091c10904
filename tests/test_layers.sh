#!/usr/bin/env bash
# The house rules that a machine can read: who may include whom, who may print, exit and keep state,
# how long a file may be, and what lies at the top. usage: test_layers.sh PROGRAM SOURCE_FOLDER
set -u
cd -- "${2:-.}" || exit 1
export LC_ALL=C.UTF-8
broken=$(mktemp) || exit 1
trap 'rm -f "$broken"' EXIT

# none WHAT: stdin lists violations, one a line; there must be none. (It runs in a pipeline, thus in
# a shell of its own: the count goes through a file.)
none() {
    local list
    list=$(cat)
    [[ -z $list ]] && return
    printf 'FAIL: %s\n%s\n' "$1" "$list"
    echo >>"$broken"
}

# Includes of our own files, as FILE:LINE:"FOLDER/NAME.h", from the given folders.
includes() { grep -rnE --include='*.[ch]' '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$@" | sed -E 's/#[^"]*//'; }
code() { grep -rnE --include='*.[ch]' "$@"; }
# Without comments at line ends and without comment lines.
no_comments() { grep -vE '^[^:]*:[0-9]+:[[:space:]]*(/\*|\*|//)' | sed -E 's@/\*.*\*/@@'; }

# Without what stands in quotes.
no_strings() { sed -E 's/"([^"\\]|\\.)*"//g'; }

# --- who may include whom ---------------------------------------------------------------------
includes ui sessions core kernels tests | grep -vE '"(ui|sessions|core|kernels|tests)/[a-z0-9_]+\.h"' |
    none "includes are written with the folder"
includes kernels | grep -vE '"(kernels/|core/base\.h")' | none "kernels include kernels and core/base.h"
includes core | grep -vE '"(core|kernels)/' | none "core includes core and kernels"
includes sessions | grep -vE '"(sessions|core|kernels)/' | none "sessions include sessions, core, kernels"
includes ui |
    grep -vE '"(ui/|sessions/|core/(base|file|json|kvmem|rankplan|spectrum|sampler|sensitivity)\.h")' |
    none "ui includes ui, sessions, and core's plain values"
includes ui sessions core kernels | grep '"tests/' | none "nothing includes tests"
includes core/base.h | none "core/base.h is a leaf"
code '#[[:space:]]*include[[:space:]]*<.*curses' sessions core kernels tests | none "only ui includes ncurses"
code '#[[:space:]]*include[[:space:]]*<(cblas|lapacke|openblas|cuda|cublas)' ui sessions core tests |
    none "only kernels include BLAS, LAPACK and CUDA"
code 'pthread|\bstruct (tensor|model|moments|backend|weight)\b|\btensor_[a-z]+\(' ui | no_comments |
    grep -v 'struct model_' | none "a front end sees no tensor and no thread"

# --- who may do what --------------------------------------------------------------------------
code '\b(exit|_exit|abort|quick_exit)\(' ui sessions core kernels | grep -v '^ui/main\.c:' |
    no_comments | grep -E '\b(exit|_exit|abort|quick_exit)\(' | none "only main ends the process"
code '\b(printf|puts|putchar|perror|vprintf)\(|\b(stdout|stderr)\b' sessions core kernels |
    no_comments | no_strings |
    grep -E '\b(printf|puts|putchar|perror|vprintf)\(|\b(stdout|stderr)\b' |
    none "only ui prints"
# State at file level: a declaration at column 0 that is not const, not a function. What a signal
# handler sets has no other place.
code '^(static |_Thread_local )*(volatile )?(struct [a-z_0-9]+|unsigned|signed|char|short|int|long|float|double|bool|size_t|u?int[0-9]+_t|sig_atomic_t|FILE|pthread_[a-z]+_t)( [a-z_0-9]+)*[ *]+[a-z_0-9]+(\[[^]]*\])*( = .*|;)' \
    ui sessions core kernels | grep -vE '\bconst\b|sig_atomic_t|\(|^[^:]*:[0-9]+:extern' |
    none "no mutable state at file level"
# A counter that makes file names unique must be shared by all threads: atomics pass.
code '^[[:space:]]+static ' ui sessions core kernels | grep -vE 'static const|static (inline|atomic_)' |
    no_comments | grep -E 'static .*(=|;)' | grep -vE '\*const [a-z_]+\[\]' |
    none "no mutable state inside functions"
code '\b(strtok|gets|sprintf|alloca)\(' ui sessions core kernels | none "functions that nobody uses"
code -i '\b(todo|fixme|xxx)\b' ui sessions core kernels tests run |
    none "unfinished business belongs into the issue list"
grep -rnE '/home/[a-z]+/|/root/' ui sessions core kernels tests run CMakeLists.txt README.md 2>/dev/null |
    grep -v '^tests/test_layers\.sh:' | none "no paths of one machine"

# --- form -------------------------------------------------------------------------------------
for file in ui/*.c sessions/*.c core/*.c kernels/*.c tests/*.c; do
    lines=$(wc -l <"$file")
    ((lines <= 800)) || echo "$file: $lines lines"
    [[ $(head -c 2 "$file") == "/*" ]] || echo "$file: does not begin by saying what it is"
done | none "a .c file has at most 800 lines and begins by saying what it is"
for file in ui/*.h sessions/*.h core/*.h kernels/*.h tests/*.h; do
    # Kernels that must be inlined are code in a header: they count as code.
    most=150
    if grep -qE '^(static inline|INLINE) ' "$file"; then most=800; fi
    if [[ $file == ui/app.h ]]; then most=200; fi # the state of all screens, in one place
    lines=$(wc -l <"$file")
    ((lines <= most)) || echo "$file: $lines lines"
    [[ $(head -c 2 "$file") == "/*" ]] || echo "$file: does not begin by saying what it is"
done | none "a header has at most 150 lines and begins by saying what it is"
grep -rnP --include='*.[ch]' '\t|[ ]+$' ui sessions core kernels tests | cut -c1-80 |
    none "no tabs, no blanks at line ends"
for entry in *; do
    case $entry in
    CMakeLists.txt | README.md | LICENSE | run | ui | core | kernels | sessions | tests) ;;
    build | build-*) ;; # what builds leave; ignored by git
    *) echo "$entry" ;;
    esac
done | none "the top level holds only the agreed entries"

echo "layers: $(wc -l <"$broken") rules broken"
[[ ! -s $broken ]]
