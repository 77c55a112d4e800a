#!/bin/bash
#
# scripts/sanitize.sh [--valgrind] [regress] [isolation] [tap]
#
# make test-sanitize, make test-valgrind: runs scripts/test.sh with servers that
# watch what msgq does, and fails if a test does, or if there is a report.
#
# By default msgq is built with AddressSanitizer and UndefinedBehaviorSanitizer,
# whose runtime is preloaded into the server as it is, and all tests run.  With
# --valgrind the servers run under Memcheck, and most regression tests run, msgq
# preloaded; of the reports those count that have msgq in the stack.
#
# The server itself is not instrumented.  It hands out memory in pieces of larger
# blocks, and only what leaves a block is seen, or reads what nobody has written.
#
# HOMES, REGRESS, ISOLATION and PROVE_TESTS choose, as for test.sh.  Reports are
# left in tmp/sanitize.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The server's flags have -fwrapv, under which no overflow is undefined, and
# _FORTIFY_SOURCE, whose memcpy AddressSanitizer does not know.
# shellcheck disable=SC2054 # one option
sanitize_flags=(-fsanitize=address,undefined,float-cast-overflow
	-fno-sanitize-recover=all -fno-wrapv -O1 -Wp,-U_FORTIFY_SOURCE)

# AddressSanitizer must begin before all other libraries: libgpg-error, which
# comes with libpq, would make it begin in the middle of a bindtextdomain(), and
# hang.  UndefinedBehaviorSanitizer does not look at log_path where there is another
# sanitizer, and begins so late that the server has overwritten its environment.
build_helpers() {
	gcc -shared -fPIC -Wl,-z,initfirst -o "$reports/first.so" -x c - <<-EOF
		#include <stdlib.h>
		__attribute__((constructor)) static void
		begin(void)
		{
			void *volatile block = malloc(1);
			free(block);
		}
	EOF
	gcc -shared -fPIC -o "$reports/ubsan.so" -x c - <<-EOF
		#include <dlfcn.h>
		const char *
		__ubsan_default_options(void)
		{
			return "abort_on_error=1:print_stacktrace=1";
		}
		__attribute__((constructor)) static void
		set_path(void)
		{
			void (*set_report_path)(const char *) = (void (*)(const char *))
				dlsym(dlopen("libubsan.so.1", RTLD_NOW), "__sanitizer_set_report_path");
			set_report_path("$reports/ubsan");
		}
	EOF
}

# PostgreSQL frees nothing when it ends, and tries what it may not get.
sanitizers_setup() {
	local runtime options

	runtime=$(readlink -f "$(gcc -print-file-name=libasan.so)")
	[ -f "$runtime" ] || die "gcc has no libasan"
	build_helpers
	export COPT=${sanitize_flags[*]}
	options=log_path=$reports/asan:abort_on_error=1:detect_leaks=0
	options+=:allocator_may_return_null=1
	options+=:detect_stack_use_after_return=1
	export MSGQ_SERVER_ENV="LD_PRELOAD=$runtime:$reports/first.so:$reports/ubsan.so ASAN_OPTIONS=$options"
}

sanitizers_reports() {
	find "$reports" \( -name 'asan.*' -o -name 'ubsan.[0-9]*' \) -exec cat {} +
}

valgrind_setup() {
	export HOMES=${HOMES:-preloaded}
	# Those that are left out compare msgq with models in SQL, over which the
	# server would brood for hours.
	export REGRESS=${REGRESS:-$(cd "$MSGQ_TOP/sql" &&
		printf '%s\n' *.sql | sed 's/\.sql$//' | grep -vxE 'cron|patterns' | xargs)}
	export COPT='-O1 -fno-inline'
	cp "$MSGQ_TOP/scripts/valgrind.supp" "$reports/"
	export MSGQ_SERVER_UNDER="valgrind --quiet --trace-children=yes \
		--error-limit=no --num-callers=40 --fullpath-after= \
		--suppressions=$reports/valgrind.supp --log-file=$reports/memcheck.%p"
}

# A report is a paragraph of lines that begin with the process: that of a
# postmaster and those of its children share a file.
valgrind_reports() {
	find "$reports" -name 'memcheck.*' -exec cat {} + | awk '
		match($0, /^==[0-9]+== ?/) {
			process = substr($0, 1, RLENGTH)
			line = substr($0, RLENGTH + 1)
			if (line != "")
				report[process] = report[process] $0 "\n"
			else
				finish(process)
		}
		END { for (process in report) finish(process) }
		function finish(process) {
			if (report[process] ~ /\/source\/src\/|msgq\.so/)
				print report[process]
			report[process] = ""
		}'
}

main() {
	local status=0 found

	reports=$(msgq_dir "$MSGQ_TOP/tmp/sanitize")
	rm -rf "${reports:?}"/*
	"${tool}_setup"
	# All is slower than the tests and their programs expect.
	export PG_TEST_TIMEOUT_DEFAULT=1800 PGISOLATIONTIMEOUT=1800 PGCTLTIMEOUT=600
	export MSGQ_TEST_TIME_LIMIT=${MSGQ_TEST_TIME_LIMIT:-14400}
	bash "$MSGQ_TOP/scripts/test.sh" "${kinds[@]}" || status=$?

	found=$("${tool}_reports")
	if [ -n "$found" ]; then
		echo "$found"
		die "there are reports, in $reports"
	fi
	echo "no reports"
	return "$status"
}

msgq_lock sanitize "$@"
tool=sanitizers
kinds=("$@")
if [ "${1:-}" = --valgrind ]; then
	tool=valgrind
	kinds=("${@:2}")
	# Without symbols of libc it does not start.
	EXTRA_PACKAGES=(valgrind libc6-dbg)
	if [ ${#kinds[@]} -eq 0 ]; then
		kinds=(regress)
	fi
fi
msgq_packages
main
