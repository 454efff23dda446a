# Recipes for people who work on meshnode. `just` comes with the development dependencies (rust-just).

python := if path_exists(".venv/bin/python") == "true" { ".venv/bin/python" } else { "python3" }

# show the recipes
default:
    @just --list

# create the environment with everything that development needs
setup:
    test -x .venv/bin/python || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"

# serve the demo model
run *ARGUMENTS="--model demo":
    {{python}} -m meshnode {{ARGUMENTS}}

# build the engine (once; later calls find it in the cache)
engine:
    {{python}} -m meshnode engine build

# all tests; arguments go to pytest
test *ARGUMENTS: engine
    {{python}} -m pytest {{ARGUMENTS}}

# formatting, lint, types and the shape of the house
check:
    {{python}} -m ruff format --check .
    {{python}} -m ruff check .
    {{python}} -m mypy
    {{python}} -m pytest -q tests/test_architecture.py

# the figures of bench/README.md but those of long simulations (an hour on an idle machine); `just bench split` for one
bench *OPTIONS:
    {{python}} -m bench {{OPTIONS}}

# fetch the pinned libraries of the web console anew (needs npm; see tools/vendor_console.py)
vendor-console:
    {{python}} tools/vendor_console.py

# a picture of every view of the console, in both themes, into docs/screenshots (needs Chromium)
screenshots *VIEWS:
    {{python}} -m tests.console.screenshots {{VIEWS}}
