#!/bin/bash
#
# scripts/indent.sh [--check] - make indent, make indent-check
#
# Formats src/*.[ch] and test/chaos/*.[ch] as PostgreSQL core is formatted, with
# core's options for pg_bsd_indent.  --check changes nothing and fails if
# something would change.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

OPTIONS=(-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4
	-l79 -lp -lpl -nip -npro -sac -tpg -ts4)

# pg_bsd_indent has to be told which names are types.  Ours stand in
# typedefs.list; core's list is not part of any package, so what its headers
# define is read from them.
typedefs() {
	local headers
	headers=$("$PG_CONFIG" --includedir-server)

	grep -v '^#' "$MSGQ_TOP/scripts/typedefs.list" 2>/dev/null || true
	find "$headers" -name '*.h' -exec cat {} + | perl -0777 -ne '
		s{/\*.*?\*/}{}gs;
		# typedef struct Foo ... Foo; and typedef int (*callback) (...);
		print "$1\n" while /^typedef\b[^;{}]*?\b(\w+)(?:\[[^]]*\])?;/gm;
		print "$1\n" while /^typedef\b[^;{}()]*\(\s*\*\s*(\w+)\s*\)/gm;
		print "$1\n" while /^\}\s*(\w+)\s*;/gm;'
	printf '%s\n' bool FILE int8_t int16_t int32_t int64_t uint8_t uint16_t \
		uint32_t uint64_t sig_atomic_t size_t ssize_t off_t pid_t time_t va_list uintptr_t
}

# What core's pgindent does around pg_bsd_indent, as far as it is needed here:
# "//" comments become the other kind, comments that begin with dashes stay as
# they are, and the blank line that pg_bsd_indent puts between an opening brace
# and a comment goes again.
formatted() {
	perl -pe 's{^([ \t]*)//(.*)$}{$1/* $2 */}; s{/\* ---}{/*---X_X}' "$1" |
		pg_bsd_indent "${OPTIONS[@]}" "-U$types" |
		perl -0777 -pe '
			s{/\*---X_X}{/* ---}g;
			s{(\t*\{\n)\n([ \t]+/\*)$}{$1$2}gm;
			s{\*/(/\*.*\*/)$}{*/\t$1}gm;
			s{^(\#endif)[ \t]+/\*}{$1\t\t\t\t\t\t\t/*}gm;'
}

main() {
	local file changed=0

	types=$(mktemp)
	trap 'rm -f "$types" "$types.c"' EXIT
	typedefs | sort -u >"$types"

	for file in "$MSGQ_TOP"/{test/chaos,src}/*.[ch]; do
		formatted "$file" >"$types.c"
		if cmp -s "$file" "$types.c"; then
			continue
		fi
		changed=$((changed + 1))
		if [ "${1:-}" = --check ]; then
			diff -u --label "$file" --label formatted "$file" "$types.c" || true
		else
			cat "$types.c" >"$file"
			echo "formatted ${file#"$MSGQ_TOP"/}"
		fi
	done
	if [ "${1:-}" = --check ] && [ "$changed" -gt 0 ]; then
		die "$changed files are not formatted; run make indent"
	fi
}

EXTRA_PACKAGES=(pg-bsd-indent)
msgq_packages
main "$@"
