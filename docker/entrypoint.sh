#!/bin/sh
# Starts a node with the given options. One that belongs to no mesh yet joins the one whose invite stands in the file
# INVITE_FILE; it is read from there, so that it shows in no list of processes, and never again after that.
set -eu
if [ -n "${INVITE_FILE:-}" ] && [ ! -e "${MESHNODE_HOME:?}/mesh/membership" ]; then
    exec meshnode --join - "$@" <"$INVITE_FILE"
fi
exec meshnode "$@"
