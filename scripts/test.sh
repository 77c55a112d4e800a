#!/bin/bash
#
# scripts/test.sh [regress] [isolation] [tap] - make test
#
# Builds msgq into a private copy of PostgreSQL and runs the tests there, each
# kind on servers of its own.  What counts is the test file: a regression
# test, an isolation spec, or a TAP script, passed or failed as a whole.
#
# Everything runs twice, since the state that backends share has two homes:
# with msgq preloaded, and without.  HOMES chooses one of them.
#
# REGRESS, ISOLATION and PROVE_TESTS choose single tests, as they do for
# `make installcheck`.  Logs and differences are left in tmp/test/logs.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A test that hangs must fail, not the whole run vanish.
TIME_LIMIT=${MSGQ_TEST_TIME_LIMIT:-1800}

HOMES=${HOMES:-preloaded plain}

passed=0
failed=0
summary=()

# The names of a kind's tests: the files' names without folder and suffix.
names() {
	local folder=$1 suffix=$2 file

	for file in "$MSGQ_SOURCE/$folder"/*."$suffix"; do
		if [ -e "$file" ]; then
			basename "$file" ".$suffix"
		fi
	done
}

# Runs one kind through PGXS's installcheck, the other two left out.  The
# private programs come first on the PATH of all that is started.
installcheck() {
	local log=$1
	shift

	as_user timeout --kill-after=20 "$TIME_LIMIT" \
		make -s -C "$MSGQ_SOURCE" --no-print-directory installcheck \
		PG_CONFIG="$PG_CONFIG" with_llvm=no bindir="$PG_BIN" "$@" \
		</dev/null 2>&1 | tee "$log"
}

# Whatever does not say that it passed has failed: so a server that did not
# start, or a run that was cut off, counts for all the tests it owed.
tally() {
	local kind=$1 expected=$2 ok=$3 skipped=${4:-0} bad text

	bad=$((expected - ok - skipped))
	passed=$((passed + ok))
	failed=$((failed + bad))
	text="$kind, $home: $ok passed, $bad failed"
	if [ "$skipped" -gt 0 ]; then
		text+=", $skipped skipped"
	fi
	summary+=("$text")
}

# pg_regress says "test a ... ok  12 ms" up to 15 and "ok 1 - a  12 ms" since
# ("+" for "-" when tests run side by side).
count_regress() {
	grep -cE '^(test +| +)[^ ]+ +\.\.\. ok +[0-9]+ ms|^ok +[0-9]+ +[-+] ' "$1" || true
}

keep() {
	local from=$1 to=$2

	if [ -e "$from" ]; then
		cp -r "$from" "$logs/$to"
	fi
}

# pg_regress and the isolation tester, which is pg_regress with other files.
run_regress() {
	local kind=$1 variable=$2 output=$3 status=0
	local log=$logs/$home.$kind.log tests=("${@:4}")
	local off=(REGRESS= ISOLATION= TAP_TESTS=)

	if [ ${#tests[@]} -eq 0 ]; then
		return
	fi
	printf '\n== %s, %s: %s tests\n' "$kind" "$home" "${#tests[@]}"
	# Relative, so that a blank in the tree's path does not part an option.
	installcheck "$log" "${off[@]/#$variable=*/$variable=${tests[*]}}" \
		EXTRA_REGRESS_OPTS="--temp-instance=../../$kind \
			--temp-config=test/$home.conf \
			--no-locale --encoding=UTF8" || status=$?
	tally "$kind" ${#tests[@]} "$(count_regress "$log")"
	if [ "$status" -ne 0 ]; then
		keep "$MSGQ_SOURCE/$output/regression.diffs" "$home.$kind.diffs"
		keep "$work/$kind/log/postmaster.log" "$home.$kind.server.log"
		cat "$logs/$home.$kind.diffs" 2>/dev/null || tail -n 30 \
			"$logs/$home.$kind.server.log" 2>/dev/null || true
	fi
	# What a run over the time limit left; pg_regress removes its own.
	servers_kill "$work/$kind"
	as_user rm -rf "$work/$kind"
}

# prove prints one line per script: "test/tap/a.pl .. ok", or what failed.
run_tap() {
	local log=$logs/$home.tap.log tests=("$@") status=0

	if [ ${#tests[@]} -eq 0 ]; then
		return
	fi
	printf '\n== tap, %s: %s scripts\n' "$home" ${#tests[@]}
	MSGQ_TEST_HOME=$home installcheck "$log" REGRESS= ISOLATION= TAP_TESTS=1 \
		PROVE_TESTS="${tests[*]}" || status=$?
	tally tap ${#tests[@]} \
		"$(grep -cE '^test/tap/[^ ]+ \.+ ok$' "$log" || true)" \
		"$(grep -cE '^test/tap/[^ ]+ \.+ skipped' "$log" || true)"
	if [ "$status" -ne 0 ]; then
		keep "$MSGQ_SOURCE/tmp_check/log" "$home.tap"
	fi
}

# The distribution's metadata repeats the control file's version.
check_version() {
	local version

	version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$MSGQ_TOP/msgq.control")
	grep -q "\"version\": \"$version\"" "$MSGQ_TOP/META.json" ||
		die "META.json does not have the version of msgq.control, $version"
}

# Leaves the logs, in the tree, and nothing else.
finish() {
	local kept=$MSGQ_TOP/tmp/test.logs

	servers_kill "$work"
	rm -rf "$kept"
	mv "$logs" "$kept"
	msgq_dir_remove "$MSGQ_TOP/tmp/test"
	mkdir -p "$MSGQ_TOP/tmp/test"
	mv "$kept" "$MSGQ_TOP/tmp/test/logs"
}

# The servers of pg_regress and of the isolation tester in this home.
write_server_conf() {
	local conf=$MSGQ_SOURCE/test/$home.conf

	cp "$MSGQ_SOURCE/test/server.conf" "$conf"
	if [ "$home" = preloaded ]; then
		echo "shared_preload_libraries = 'msgq'" >>"$conf"
	fi
}

# All kinds that were asked for, in this home.
run_kinds() {
	local tests

	if [[ " $kinds " == *" regress "* ]]; then
		read -ra tests <<<"${REGRESS:-$(names sql sql | xargs)}"
		run_regress regress REGRESS . "${tests[@]}"
	fi
	if [[ " $kinds " == *" isolation "* ]]; then
		read -ra tests <<<"${ISOLATION:-$(names test/isolation/specs spec | xargs)}"
		run_regress isolation ISOLATION output_iso "${tests[@]}"
	fi
	if [[ " $kinds " == *" tap "* ]]; then
		read -ra tests <<<"${PROVE_TESTS:-$(names test/tap pl | sed 's|.*|test/tap/&.pl|' | xargs)}"
		run_tap "${tests[@]}"
	fi
}

main() {
	local kinds="${*:-regress isolation tap}" part home

	# A run that was killed has cleaned up nothing.
	servers_kill "$MSGQ_TOP/tmp/test/"
	msgq_dir_remove "$MSGQ_TOP/tmp/test"
	work=$(msgq_dir "$MSGQ_TOP/tmp/test")
	logs=$work/logs
	mkdir "$logs"
	trap finish EXIT

	check_version
	echo "== building for $("$PG_CONFIG" --version)"
	pg_private "$work/pg"
	cp "$work/pg/build.log" "$logs/"

	for home in $HOMES; do
		write_server_conf
		run_kinds
	done

	printf '\n%s\n' "$("$PG_CONFIG" --version)"
	for part in "${summary[@]}"; do
		echo "  $part"
	done
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

msgq_lock test "$@"
# The load driver of test/chaos is a client.
libpq_package
sqlsmith_package
msgq_packages
main "$@"
