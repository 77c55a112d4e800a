#!/bin/bash
#
# scripts/chaos.sh [--long] - make chaos, make chaos-long
#
# Runs test/tap/032_chaos.pl for as long as MSGQ_CHAOS_SECONDS says, half of it
# in each home of the shared state, and with the canaries: ten minutes, or two
# hours (--long).  MSGQ_CHAOS_SEED repeats a run; HOMES chooses one home.  The
# reports are left in tmp/test/logs/<home>.tap.log.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=${MSGQ_CHAOS_SECONDS:-600}
if [ "${1:-}" = --long ]; then
	seconds=${MSGQ_CHAOS_SECONDS:-7200}
fi
read -ra homes <<<"${HOMES:-preloaded plain}"
seconds=$((seconds / ${#homes[@]}))

commit=$(git -c safe.directory='*' -C "$MSGQ_TOP" describe --always --dirty 2>/dev/null) ||
	commit=unknown
export MSGQ_CHAOS_SECONDS=$seconds MSGQ_CHAOS_COMMIT=$commit
# Draining and checking take time, too, and so do the canaries.
export MSGQ_TEST_TIME_LIMIT=$((2 * seconds + 1200))
export PROVE_TESTS=test/tap/032_chaos.pl
exec bash "$MSGQ_TOP/scripts/test.sh" tap
