# shellcheck shell=bash
#
# scripts/lib.sh - what all scripts share; to be sourced, by bench/run as well
#
#   msgq_packages                 everything that a build and a test need,
#                                 and what EXTRA_PACKAGES names
#   libpq_package                 names libpq's headers there, if they are missing
#   sqlsmith_package              names sqlsmith there, where Debian has it
#   msgq_dir PATH                 a directory that the server's user can reach
#   msgq_cache_dir                where downloads stay, outside the tree
#   msgq_copy_source DEST         the sources, without what builds left
#   pg_private PREFIX             a private PostgreSQL with msgq in it, its server
#                                 with MSGQ_SERVER_ENV, under MSGQ_SERVER_UNDER
#   server_start DATADIR [LINE..] a server on a Unix socket
#   server_stop DATADIR           and its end
#   as_user CMD...                a command as the server's user
#
# The system's PostgreSQL is read and never written.  What a run leaves lies
# under tmp/ in the tree.

MSGQ_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# PostgreSQL refuses to run as root; root's runs use Debian's account.
MSGQ_USER=${MSGQ_USER:-postgres}

# Debian packages that only the sourcing script needs.
EXTRA_PACKAGES=()

# The server's user has to read what root writes here.
umask 022

# A `make -j4 PG_CONFIG=...` above must not reach into the makes below.
unset MAKEFLAGS MFLAGS MAKELEVEL

die() {
	echo "msgq: $*" >&2
	exit 1
}

have() {
	command -v "$1" >/dev/null 2>&1
}

is_root() {
	[ "$(id -u)" -eq 0 ]
}

# ---------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------

# Can this pg_config's PostgreSQL both run and build extensions?  Debian's
# client package brings pgxs.mk, but neither headers nor server.
pg_config_fits() {
	have "$1" && [ -f "$("$1" --pgxs 2>/dev/null)" ] &&
		[ -f "$("$1" --includedir-server)/postgres.h" ] &&
		[ -x "$("$1" --bindir)/initdb" ]
}

# Sets PG_CONFIG: the caller's choice, else what the PATH finds, else the
# newest of Debian's majors.
find_pg_config() {
	local candidate

	if [ -n "${PG_CONFIG:-}" ]; then
		pg_config_fits "$PG_CONFIG" || return 1
		PG_CONFIG=$(command -v "$PG_CONFIG")
		export PG_CONFIG
		return 0
	fi
	while read -r candidate; do
		if pg_config_fits "$candidate"; then
			export PG_CONFIG=$candidate
			return 0
		fi
	done < <(command -v pg_config
		printf '%s\n' /usr/lib/postgresql/*/bin/pg_config | sort -rV)
	return 1
}

# The major that PG_CONFIG asks for, else the distribution's own.
wanted_major() {
	local major

	if [[ ${PG_CONFIG:-} =~ ^/usr/lib/postgresql/([0-9]+)/bin/pg_config$ ]]; then
		echo "${BASH_REMATCH[1]}"
		return
	fi
	[ -z "${PG_CONFIG:-}" ] ||
		die "$PG_CONFIG does not belong to a PostgreSQL with server development files"
	major=$(apt-cache show postgresql 2>/dev/null |
		sed -n 's/^Depends:.*postgresql-\([0-9]\+\).*/\1/p' | head -n 1) || true
	echo "${major:-15}"
}

# Prints the packages for what is missing, looking for files and programs
# rather than for package names, so that other sources count as well.
missing_packages() {
	local package major

	have make || echo make
	have gcc || echo gcc
	[ -e /usr/include/stdio.h ] || echo libc6-dev
	have prove || echo perl
	perl -MIPC::Run -e 1 2>/dev/null || echo libipc-run-perl
	have setpriv && have flock || echo util-linux
	if ! find_pg_config; then
		major=$(wanted_major) || exit 1
		echo "postgresql-$major"
		echo "postgresql-server-dev-$major"
	fi
	for package in "${EXTRA_PACKAGES[@]}"; do
		dpkg -s "$package" >/dev/null 2>&1 || echo "$package"
	done
}

# libpq's headers come with Debian's server development files, not with
# everybody's.
libpq_package() {
	if find_pg_config && [ ! -e "$("$PG_CONFIG" --includedir)/libpq-fe.h" ]; then
		EXTRA_PACKAGES+=(libpq-dev)
	fi
}

# sqlsmith, which one test can do without: Debian has it up to 12 only.
sqlsmith_package() {
	if is_root && ! have sqlsmith &&
		grep -qs '^VERSION_CODENAME=bookworm$' /etc/os-release; then
		EXTRA_PACKAGES+=(sqlsmith)
	fi
}

# Debian's server package makes and starts a cluster when it is installed.
# Nobody asked for one here, so it is told not to, for this one time.
apt_install() {
	local conf=/etc/postgresql-common/createcluster.d/msgq-scripts.conf
	local status=0

	if ! have pg_createcluster; then
		mkdir -p "${conf%/*}"
		echo 'create_main_cluster = false' >"$conf"
	fi
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends "$@" </dev/null || status=$?
	rm -f "$conf"
	return "$status"
}

# Installs what is missing, or says how to.
msgq_packages() {
	local list packages

	# A fresh machine may have no package lists, which name the major.
	list=$(missing_packages) || exit 1
	if [ -n "$list" ]; then
		if ! is_root || ! have apt-get; then
			mapfile -t packages <<<"$list"
			die "packages are missing; as root: apt-get install ${packages[*]}"
		fi
		apt-get update -qq </dev/null ||
			echo "msgq: not all package lists could be fetched" >&2
		mapfile -t packages < <(missing_packages)
		echo "installing: ${packages[*]}"
		apt_install "${packages[@]}" || die "could not install ${packages[*]}"
	fi
	find_pg_config ||
		die "found no PostgreSQL with server development files${PG_CONFIG:+ at $PG_CONFIG}"
	if is_root && ! id "$MSGQ_USER" >/dev/null 2>&1; then
		die "root cannot run PostgreSQL and there is no user $MSGQ_USER; set MSGQ_USER"
	fi
}

# ---------------------------------------------------------------------------
# The server's user, and places that it can reach
# ---------------------------------------------------------------------------

# Runs a command as the server's user.  The working directory stays, if that
# user may enter it; the environment stays, but for what names root's places.
as_user() {
	if ! is_root; then
		"$@"
		return
	fi
	(
		from=$PWD
		cd /
		# shellcheck disable=SC2016 # expanded by the inner shell
		exec setpriv --reuid="$MSGQ_USER" --regid="$(id -g "$MSGQ_USER")" \
			--init-groups \
			env -u TMPDIR -u XDG_RUNTIME_DIR -u XDG_CACHE_HOME -u MAIL \
			HOME="$(getent passwd "$MSGQ_USER" | cut -d: -f6)" \
			USER="$MSGQ_USER" LOGNAME="$MSGQ_USER" \
			sh -c 'cd "$0" 2>/dev/null; exec "$@"' "$from" "$@"
	)
}

# Makes PATH a directory of the server's user and prints where it really is.
# When root's checkout lies where that user may not go (/root/msgq), or its
# path has a character that make or PostgreSQL would trip over, PATH becomes a
# link to a directory in /var/tmp.
msgq_dir() {
	local path=$1 real

	# A link whose target has gone, or is no longer ours, is made anew.
	if [ -L "$path" ] && ! as_user test -O "$path/."; then
		rm -f "$path"
	fi
	if [ ! -d "$path" ]; then
		mkdir -p "$path"
		if is_root; then
			chown "$MSGQ_USER:" "$path"
		fi
	fi
	real=$(readlink -f "$path")
	if [[ $real =~ [^A-Za-z0-9_./+-] ]] || ! as_user test -w "$real/."; then
		rmdir "$path" 2>/dev/null ||
			die "$path is in the way: it is not usable by the server's user; remove it"
		real=$(mktemp -d /var/tmp/msgq.XXXXXXXX)
		if is_root; then
			chown "$MSGQ_USER:" "$real"
		fi
		chmod 755 "$real"
		ln -s "$real" "$path"
	fi
	echo "$real"
}

# Removes what msgq_dir made, and its target when it made a link.
msgq_dir_remove() {
	local path=$1 target

	if [ -L "$path" ]; then
		target=$(readlink "$path")
		case $target in
			/var/tmp/msgq.*) rm -rf "$target" ;;
		esac
	fi
	rm -rf "$path"
}

# Outlives the checkout, so that the next one need not download again.
msgq_cache_dir() {
	local dir=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/msgq

	if is_root; then
		dir=/var/cache/msgq
	fi
	mkdir -p "$dir"
	echo "$dir"
}

# Runs this script again under a lock of the given name, so that two runs in
# one checkout do not remove each other's files.  The lock is not inherited
# by the servers that the script starts (--close).
msgq_lock() {
	local name=$1 status=0
	shift

	if [ "${MSGQ_LOCKED:-}" = "$name" ]; then
		return
	fi
	mkdir -p "$MSGQ_TOP/tmp"
	MSGQ_LOCKED=$name flock --close --nonblock --conflict-exit-code 75 \
		"$MSGQ_TOP/tmp/$name.lock" bash "$0" "$@" || status=$?
	if [ "$status" -eq 75 ]; then
		die "another run of $(basename "$0") is at work in this checkout"
	fi
	exit "$status"
}

# ---------------------------------------------------------------------------
# Sources and a private PostgreSQL
# ---------------------------------------------------------------------------

# The tree's source files, NUL-terminated: what git knows or would add.  A
# tree without git has what a build may have left taken out.
source_files() {
	local file

	cd "$MSGQ_TOP" || exit 1
	if [ -e .git ] && have git &&
		git -c safe.directory='*' ls-files >/dev/null 2>&1; then
		git -c safe.directory='*' ls-files -z --cached --others \
			--exclude-standard | sort -zu |
			while IFS= read -r -d '' file; do
				# deleted, but not yet in git's eyes
				if [ -e "$file" ] || [ -L "$file" ]; then
					printf '%s\0' "$file"
				fi
			done
	else
		find . \( -path ./tmp -o -path ./.git \) -prune -o \
			\( -type f -o -type l \) ! -name '*.o' ! -name '*.so' \
			! -name '*.bc' ! -path './msgq--*.sql' -print0
	fi
}

# DEST is emptied first.
msgq_copy_source() {
	local dest=$1

	rm -rf "$dest"
	mkdir -p "$dest"
	(source_files) | tar -C "$MSGQ_TOP" --null --no-recursion \
		--files-from=- -cf - | tar -C "$dest" --no-same-owner -xf -
}

# Fills DST with links to what is in SRC.
link_entries() {
	local src=$1 dst=$2

	mkdir -p "$dst"
	find "$src" -mindepth 1 -maxdepth 1 -exec ln -sfn -t "$dst" {} +
}

# PostgreSQL finds its other files from where its program lies.  So a copy of
# the programs, with links to the rest around it, is an installation of its
# own; only the two directories that an extension writes to are real.
copy_installation() {
	local prefix=$1 bindir sharedir pkglibdir includedir program

	bindir=$("$PG_CONFIG" --bindir)
	sharedir=$("$PG_CONFIG" --sharedir)
	pkglibdir=$("$PG_CONFIG" --pkglibdir)
	includedir=$("$PG_CONFIG" --includedir)
	PG_BIN=$prefix$bindir
	export PG_BIN

	# --remove-destination: a server may still run from the old copy.
	mkdir -p "$PG_BIN"
	for program in "$bindir"/{postgres,initdb,psql,pgbench,pg_*} \
		"$bindir"/{create,drop,vacuum,reindex,cluster}{db,user}; do
		if [ -f "$program" ]; then
			cp -L --remove-destination "$program" "$PG_BIN/"
		fi
	done

	link_entries "$sharedir" "$prefix$sharedir"
	rm -f "$prefix$sharedir/extension"
	link_entries "$sharedir/extension" "$prefix$sharedir/extension"
	link_entries "$pkglibdir" "$prefix$pkglibdir"
	mkdir -p "$(dirname "$prefix$includedir")"
	ln -sfn "$includedir" "$prefix$includedir"

	# An msgq of the system must not shine through.
	rm -f "$prefix$sharedir"/extension/msgq[.-]* "$prefix$pkglibdir/msgq.so"
}

# Builds in MSGQ_SOURCE and installs below PREFIX.
build_extension() {
	local prefix=$1 log=$1/build.log

	# No bitcode: it needs the very clang that the server was built with.
	if ! make -C "$MSGQ_SOURCE" -j"$(nproc)" PG_CONFIG="$PG_CONFIG" \
		with_llvm=no all >"$log" 2>&1 ||
		! make -C "$MSGQ_SOURCE" PG_CONFIG="$PG_CONFIG" \
			with_llvm=no DESTDIR="$prefix" install >>"$log" 2>&1; then
		cat "$log" >&2
		die "the build failed"
	fi
	grep -A 4 'warning:' "$log" >&2 || true
}

# Lets the private server have the variables MSGQ_SERVER_ENV (NAME=value ...), or
# be run by the command MSGQ_SERVER_UNDER; but not where initdb and others ask it
# for something.  With the variables it goes by this script's name, which is what
# pg_ctl restart runs.
server_under() {
	mv "$PG_BIN/postgres" "$PG_BIN/postgres.bin"
	cat >"$PG_BIN/postgres" <<-EOF
		#!/bin/bash
		under=
		case \$1 in
			-V | --version | -C | --boot | --check | --single) ;;
			*)
				${MSGQ_SERVER_ENV:+export $MSGQ_SERVER_ENV}
				under='${MSGQ_SERVER_UNDER:-}'
				;;
		esac
		if [ -n "\$under" ]; then
			exec \$under "$PG_BIN/postgres.bin" "\$@"
		fi
		exec -a "\$0" "$PG_BIN/postgres.bin" "\$@"
	EOF
	chmod 755 "$PG_BIN/postgres"
}

# Makes a private copy of PG_CONFIG's PostgreSQL below PREFIX and builds the
# extension into it.  Sets PG_BIN, its programs, and MSGQ_SOURCE, the tree
# that was built.
pg_private() {
	local prefix

	prefix=$(msgq_dir "$1")
	rm -rf "${prefix:?}"/*
	copy_installation "$prefix"
	export MSGQ_SOURCE=$prefix/source
	msgq_copy_source "$MSGQ_SOURCE"
	build_extension "$prefix"
	if [ -n "${MSGQ_SERVER_ENV:-}${MSGQ_SERVER_UNDER:-}" ]; then
		server_under
	fi
	# The tests write beside their sources, and scripts of extensions.
	if is_root; then
		chown -R "$MSGQ_USER:" "$MSGQ_SOURCE"
		chown "$MSGQ_USER:" "$prefix$("$PG_CONFIG" --sharedir)/extension"
	fi
}

# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------

# Does a server run in this data directory?  A pid file alone proves nothing:
# after a crash its number may be another program's.
server_runs() {
	local data=$1 pid

	[ -f "$data/postmaster.pid" ] || return 1
	read -r pid <"$data/postmaster.pid" || return 1
	[ "$(readlink "/proc/$pid/cwd")" = "$(readlink -f "$data")" ]
}

# A socket's path may have 107 bytes; what is longer gets a directory in /tmp.
socket_dir() {
	local data=$1 dir

	if [ -d "$(cat "$data/msgq.socket" 2>/dev/null)" ]; then
		cat "$data/msgq.socket"
		return
	fi
	dir=$data
	if [ "${#data}" -gt 90 ]; then
		dir=$(mktemp -d /tmp/msgq.XXXXXX)
		if is_root; then
			chown "$MSGQ_USER:" "$dir"
		fi
	fi
	echo "$dir" | as_user tee "$data/msgq.socket"
}

# Makes the cluster, unless one of this major is there.  A cluster of another
# major was made by an earlier run, and is of no use to this one.
init_data() {
	local data=$1 major

	major=$("$PG_BIN/pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
	if [ -f "$data/PG_VERSION" ]; then
		if [ "$(cat "$data/PG_VERSION")" = "$major" ]; then
			return
		fi
		rm -rf "${data:?}"/*
	fi
	as_user "$PG_BIN/initdb" -D "$data" -U postgres -A trust -E UTF8 \
		--no-locale >"$data.initdb.log" 2>&1 ||
		{ cat "$data.initdb.log" >&2; die "initdb failed"; }
	rm -f "$data.initdb.log"
	echo "include_if_exists 'msgq.conf'" |
		as_user tee -a "$data/postgresql.conf" >/dev/null
}

# server_start DATADIR [configuration line...]
#
# Starts a server, unless it runs with this very configuration, and exports
# what libpq needs to find it.
server_start() {
	local data conf
	data=$(msgq_dir "$1")
	shift

	: "${PG_BIN:=$("$PG_CONFIG" --bindir)}"
	init_data "$data"
	PGHOST=$(socket_dir "$data")
	export PGHOST PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
	conf=$(printf '%s\n' "listen_addresses = ''" "port = 5432" \
		"unix_socket_directories = '$PGHOST'" "$@")
	if server_runs "$data"; then
		if [ "$(cat "$data/msgq.conf")" = "$conf" ]; then
			return
		fi
		server_signal "$data" INT
	fi
	echo "$conf" | as_user tee "$data/msgq.conf" >/dev/null
	as_user "$PG_BIN/pg_ctl" -D "$data" -l "$data/server.log" -w start \
		>/dev/null </dev/null ||
		{ tail -n 20 "$data/server.log" >&2; die "the server did not start"; }
}

# Tells a server to end (INT: disconnect clients, then a clean shutdown; QUIT:
# at once) and waits until it has.
server_signal() {
	local data=$1 signal=$2 pid tries

	server_runs "$data" || return 0
	read -r pid <"$data/postmaster.pid"
	kill -s "$signal" "$pid"
	for ((tries = 0; tries < 600; tries++)); do
		server_runs "$data" || return 0
		sleep 0.1
	done
	die "the server in $data did not stop"
}

# Stops the server of DATADIR, if there is one; its data stays.
server_stop() {
	local data socket
	data=$(readlink -e "$1") || return 0

	server_signal "$data" INT
	socket=$(cat "$data/msgq.socket" 2>/dev/null) || return 0
	case $socket in
		/tmp/msgq.*) rm -rf "$socket" ;;
	esac
	rm -f "$data/msgq.socket"
}

# Ends the servers that an interrupted test left below DIR.
servers_kill() {
	local dir=$1 pidfile

	while IFS= read -r -d '' pidfile; do
		server_signal "${pidfile%/*}" QUIT
	done < <(find "$dir" -name postmaster.pid -print0 2>/dev/null)
}
