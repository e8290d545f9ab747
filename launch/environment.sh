# shellcheck shell=bash
# Sourced by the other scripts here. It makes a virtual environment and installs the package into it, both only once.

stop() {
  echo "error: $*" >&2
  exit 1
}

# supported PYTHON: whether this interpreter exists and its version is one that the package supports.
supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

# first_supported PYTHON...: prints the first interpreter that is supported.
first_supported() {
  local python
  for python in "$@"; do
    if supported "$python"; then
      echo "$python"
      return
    fi
  done
  return 1
}

# activate PYTHON...: keeps an active virtual environment. Otherwise it uses .venv, and makes it if necessary with the
# first PYTHON that is supported.
activate() {
  local python version
  if [[ -z ${VIRTUAL_ENV:-} ]]; then
    if [[ ! -x .venv/bin/pip ]]; then # pip is installed last, so an environment without it is incomplete
      python=$(first_supported "$@") ||
        stop "no Python 3.11, 3.12 or 3.13 found (looked for: $*); Debian, Ubuntu: sudo apt install python3 python3-venv"
      version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
      "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$python cannot make virtual environments; Debian, Ubuntu: sudo apt install python$version-venv"
      echo "Making a virtual environment in .venv (Python $version)"
      "$python" -m venv .venv
    fi
    # shellcheck source=/dev/null
    source .venv/bin/activate
  fi
  supported python || stop "$VIRTUAL_ENV has $(python --version); Python 3.11, 3.12 or 3.13 is needed"
  echo "Using $VIRTUAL_ENV ($(python --version))"
}

# install_package EXTRAS [REQUIREMENT...]: installs the requirements and this checkout with the extras (may be empty).
# A stamp in the environment holds the checksum of setup.py, and nothing is installed until that changes.
install_package() {
  local extras=$1 stamp sum
  shift
  stamp="$VIRTUAL_ENV/.spo_jax-installed${extras:+-${extras//,/-}}"
  sum="$(cksum <setup.py) $PWD"
  if [[ -f $stamp && $(<"$stamp") == "$sum" ]]; then
    echo "Already installed (setup.py has not changed)"
    return
  fi
  echo "Installing spo_jax${extras:+ with extras $extras} (a few minutes the first time)"
  for requirement in "$@"; do
    python -m pip install --quiet --disable-pip-version-check "$requirement"
  done
  python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
  echo "$sum" >"$stamp"
}
