# Sourced by launch/test.sh and the quickstarts: makes the virtual environment in .venv once and activates it.
#   install_venv EXTRAS      EXTRAS is "" or something like "[sim]"
# PYTHON=/path/to/python picks the interpreter (3.11 or newer); VENV=/path/to/venv puts the environment elsewhere.
# Versions are those of launch/constraints-PYTHON.txt where there is one; CONSTRAINTS=FILE takes another, CONSTRAINTS= none.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.13 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            echo "error: PYTHON=$candidate is not Python 3.11 or newer" >&2
            return 2
        fi
    done
    echo "error: no Python 3.11 or newer on the PATH; install one or set PYTHON=/path/to/python" >&2
    return 2
}

# The file of versions for the Python of a virtual environment; nothing where there is none.
constraints_of() {
    local constraints
    constraints="launch/constraints-$("$1/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt"
    [ -f "$constraints" ] || constraints=""
    echo "${CONSTRAINTS-$constraints}"
}

# What a finished virtual environment is marked with: another line, and it is installed again.
mark_of() {
    # shellcheck disable=SC2046
    echo "$(cat requirements.txt setup.py $(constraints_of "$1") | cksum) $PWD"
}

install_venv() {
    local extras="$1" venv="${VENV:-.venv}" python mark wanted constraints
    if [ ! -x "$venv/bin/python" ]; then
        python="$(find_python)" || return 2
        echo "== making $venv with $("$python" --version)"
        "$python" -m venv "$venv" || return 2
    fi
    # The mark is written last: an installation that was interrupted, or one for older requirements, is done again.
    mark="$venv/.lapa_jax${extras}"
    constraints="$(constraints_of "$venv")" wanted="$(mark_of "$venv")"
    if [ ! -f "$mark" ] || [ "$(cat "$mark")" != "$wanted" ]; then
        echo "== installing lapa_jax$extras and its dependencies (1 to 2 minutes)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            ${constraints:+--constraint "$constraints"} -e ".$extras" || return 2
        echo "$wanted" >"$mark"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
}
