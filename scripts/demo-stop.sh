#!/bin/bash
#
# scripts/demo-stop.sh - make demo-stop
#
# Stops the server of the demo and removes what it left.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

server_stop "$MSGQ_TOP/tmp/demo/data"
msgq_dir_remove "$MSGQ_TOP/tmp/demo"
echo "the demo's server is stopped and its files are removed"
