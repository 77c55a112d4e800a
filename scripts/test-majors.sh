#!/bin/bash
#
# scripts/test-majors.sh [MAJOR...] - make test-majors
#
# Runs scripts/test.sh under other major versions, each in the Debian release
# that packages it.  The release is unpacked once, by debootstrap, into a
# folder outside the tree (msgq_cache_dir); afterwards no network is needed.
# To refresh one, remove its folder.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# major:suite:debootstrap script; a suite that is younger than debootstrap is
# built with the script of unstable.
RELEASES=(17:trixie:trixie 18:forky:sid)

passed=0
failed=0

# Debian mirrors that this machine's apt uses for its own release: entries
# that name exactly its codename, which other vendors' and the security
# archive's do not.  Then an empty one, which is debootstrap's default.
mirrors() {
	local codename

	codename=$(. /etc/os-release && [ "${ID:-}" = debian ] &&
		echo "${VERSION_CODENAME:-}") || true
	if [ -n "$codename" ]; then
		cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
			awk -v suite="$codename" '$1 == "deb" {
				gsub(/\[[^]]*\]/, "")
				if ($3 == suite) print $2
			}'
		awk -v suite="$codename" '
			FNR == 1 { uri = "" }
			/^[Uu][Rr][Ii][Ss]:/ { uri = $2 }
			/^[Ss]uites:/ { for (i = 2; i <= NF; i++) if ($i == suite) print uri }
		' /etc/apt/sources.list.d/*.sources 2>/dev/null
	fi | grep -E '^(https?|file):/' | head -n 1 || true
	echo
}

# Machines behind a proxy may have told only apt.
apt_proxy() {
	local proxy=

	eval "$(apt-config shell proxy Acquire::http::Proxy)"
	if [ -n "$proxy" ] && [ -z "${http_proxy:-}" ]; then
		export http_proxy=$proxy
	fi
}

# The packages of a root, which as a whole decide whether it is complete.
packages_of() {
	echo "make,gcc,libc6-dev,perl,libipc-run-perl,postgresql-$1,postgresql-server-dev-$1"
}

# Unpacks a release under a temporary name, so that an interrupted download
# never looks like a finished one.
bootstrap() {
	local major=$1 suite=$2 script=$3 root=$4 mirror
	local partial=$root.partial log=$MSGQ_TOP/tmp/debootstrap-$major.log

	apt_proxy
	while IFS= read -r mirror; do
		rm -rf --one-file-system "$partial"
		echo "unpacking Debian $suite for PostgreSQL $major (some minutes)"
		if debootstrap --variant=minbase \
			--include="$(packages_of "$major")" "$suite" "$partial" \
			"$mirror" "$script" \
			>"$log" 2>&1 </dev/null; then
			rm -rf "$partial"/var/cache/apt/archives/*.deb
			mv "$partial" "$root"
			return 0
		fi
	done < <(mirrors)
	tail -n 20 "$log" >&2
	return 1
}

# Runs in mount and process namespaces of its own: mounts and processes end
# with it, however it ends, and no mount is seen outside.  The canaries of
# 032_chaos.pl try the checker, not the server: once is enough.  Of its scenarios
# those are run in which the releases differ most, and of the calls of
# 034_bad_input.pl a tenth.
inside() {
	local root=$1 tree=$2

	mkdir -p "$root/msgq"
	mount --bind "$tree" "$root/msgq"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	mount -t proc proc "$root/proc" || mount --rbind /proc "$root/proc"
	exec chroot "$root" /usr/bin/env -i \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
		CI="${CI:-}" MSGQ_CHAOS_CANARIES=0 MSGQ_CHAOS_SCENARIOS="mixed standby" \
		MSGQ_INPUT_CALLS=2000 bash /msgq/scripts/test.sh
}

# Adds the totals that test.sh printed; a run without totals is one failure.
add_totals() {
	local log=$1 line

	line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1) ||
		line='0 passed, 1 failed'
	passed=$((passed + ${line%% passed*}))
	line=${line#*, }
	failed=$((failed + ${line%% failed*}))
}

test_major() {
	local major=$1 suite=$2 script=$3 root tree log

	root=$(msgq_cache_dir)/$suite-$major
	tree=$MSGQ_TOP/tmp/majors/$major
	log=$MSGQ_TOP/tmp/majors/$major.log
	mkdir -p "$MSGQ_TOP/tmp/majors"
	printf '\n==== PostgreSQL %s on Debian %s\n' "$major" "$suite"
	if ! [ -d "$root" ] && ! bootstrap "$major" "$suite" "$script" "$root"; then
		echo "could not unpack Debian $suite" | tee "$log"
	else
		msgq_copy_source "$tree"
		unshare --mount --propagation private --pid --fork --kill-child \
			bash "$0" --inside "$root" "$tree" 2>&1 </dev/null |
			tee "$log" || true
	fi
}

# The majors do not know of each other, so they run side by side: tests wait most
# of their time.
main() {
	local entry major suite script majors=" $* " report=() chosen=() before_p before_f

	is_root || die "make test-majors unpacks Debian releases, which needs root"
	EXTRA_PACKAGES=(debootstrap)
	msgq_packages
	# What runs in the background does not hear of an interrupt by itself.
	trap 'trap - INT; kill -s TERM 0' INT
	for entry in "${RELEASES[@]}"; do
		IFS=: read -r major suite script <<<"$entry"
		if [ "$majors" != "  " ] && [[ $majors != *" $major "* ]]; then
			continue
		fi
		chosen+=("$major")
		test_major "$major" "$suite" "$script" | sed -u "s/^/$major: /" &
	done
	wait
	for major in "${chosen[@]}"; do
		before_p=$passed before_f=$failed
		add_totals "$MSGQ_TOP/tmp/majors/$major.log"
		report+=("  PostgreSQL $major: $((passed - before_p)) passed, $((failed - before_f)) failed")
	done
	printf '\n'
	printf '%s\n' "${report[@]}"
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

if [ "${1:-}" = --inside ]; then
	inside "$2" "$3"
fi
msgq_lock test-majors "$@"
main "$@"
