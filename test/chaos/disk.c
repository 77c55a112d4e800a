/*
 * disk.c
 *		A disk that loses what was not synced, and that gets full: to be
 *		preloaded (LD_PRELOAD) into a PostgreSQL server.
 *
 * It stands between the server and the C library, for all files in the
 * subdirectories of the data directory (MSGQ_DISK_DATA), and keeps its state in
 * another directory (MSGQ_DISK); see disk.h.  Both are absolute and resolved.
 *
 * Power failures.  Before a block is overwritten or cut off, what the disk has of
 * it is saved; fsync and fdatasync forget what was saved of that file.  When all
 * processes of the server have been killed, power.c puts the saved blocks back:
 * then the data directory is as it was if nothing else had reached the disk, or,
 * by chance, some of it.
 *
 * What is modelled: contents and sizes of files.  Each sector that was written
 * since its file's last sync may be lost, alone or with others, in any order; so
 * may be the new size of a file that grew or shrank, and a file that is new.
 * What is not: all other names.  A rename or unlink is durable at once, and so is
 * a new file once it was synced; so nothing is found out about directories that
 * are not synced.  Nor are files modelled that are written by stdio
 * (pg_internal.init, statistics), which PostgreSQL throws away after a crash, or
 * in the data directory itself (postmaster.pid), or mapped (pg_dynshmem).
 * O_DSYNC and O_DIRECT are refused, so wal_sync_method has to be fdatasync or
 * fsync.  io_uring would pass by.
 *
 * Full disks.  There are as many bytes left as Control.left says, for the
 * write-ahead log and for all the rest; UNLIMITED, if there is no end to them.
 * Data need space when a file grows.  The log needs it at each write, as on a file
 * system that copies on write: its files are allocated in advance, so that
 * otherwise it would take long until somebody notices.  A write that does not fit
 * is done in part, as far as it does; what fits not at all fails with ENOSPC.
 * Files that go free no space: others use it up.
 *
 * States and locks.  The undo file of an inode is locked, by an open file
 * description lock, for as long as a write, a sync or a truncation of the inode
 * takes, so they come one after the other, and what was written before a sync
 * begins is durable when it ends.  The lock goes with the process that has it.  The
 * order of steps is such that a process may be killed between any two: blocks
 * are saved before they are written, and forgotten after they were synced.
 *
 * Which file a descriptor belongs to, the system is asked each time: no state
 * that a fork or a close could invalidate.
 *
 * test/chaos/disk.c
 */
#define _GNU_SOURCE
#include "disk.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_VECTORS 1024

/* What the C library has under that name. */
#define REAL(function) ((__typeof__(&function)) dlsym(RTLD_NEXT, #function))

/* The other name that the function has, if off_t is asked to have 64 bits. */
#define ALSO(name, function) \
	extern __typeof__(function) name __attribute__((alias(#function)))

/* A file of the server's, and its undo file, which is open and locked. */
typedef struct File
{
	int			fd;
	int			undo;
	Space		space;
	struct stat stat;
} File;

static const char *data_dir;
static const char *undo_dir;
static Control *control;

static void
__attribute__((noreturn))
give_up(const char *what)
{
	fprintf(stderr, "PANIC:  disk.so: %s: %s\n", what, strerror(errno));
	abort();
}

static void
__attribute__((constructor))
start(void)
{
	const char *dir = getenv("MSGQ_DISK");
	const char *data = getenv("MSGQ_DISK_DATA");
	char		path[PATH_MAX];
	int			fd;

	if (dir == NULL || data == NULL)
		give_up("MSGQ_DISK and MSGQ_DISK_DATA are needed");
	/* A server overwrites its environment, to show what it does. */
	data_dir = strdup(data);
	snprintf(path, sizeof(path), "%s/undo", dir);
	undo_dir = strdup(path);
	snprintf(path, sizeof(path), "%s/control", dir);
	fd = open(path, O_RDWR);
	control = mmap(NULL, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED)
		give_up(path);
	close(fd);
}

/* ---------------------------------------------------------------------------
 * Undo files
 * ---------------------------------------------------------------------------
 */

/* Where PATH is below the data directory, or NULL if it is not in a subdirectory. */
static const char *
inner_path(const char *path)
{
	size_t		length = strlen(data_dir);

	if (strncmp(path, data_dir, length) != 0 || path[length] != '/' ||
		strchr(path + length + 1, '/') == NULL)
		return NULL;
	return path + length + 1;
}

static void
undo_path(char *path, ino_t inode)
{
	snprintf(path, PATH_MAX, "%s/%llu", undo_dir, (unsigned long long) inode);
}

/*
 * Finds out what FD is.  If it is a file that matters, opens and locks its undo
 * file; finish() has to follow.  FLAGS is O_CREAT, or 0 if a file that has no undo
 * file does not matter.
 */
static bool
begin(File *file, int fd, int flags)
{
	struct flock lock = {.l_type = F_WRLCK,.l_whence = SEEK_SET};
	char		link[40];
	char		path[PATH_MAX];
	const char *inner;
	ssize_t		length;

	if (fstat(fd, &file->stat) != 0 || !S_ISREG(file->stat.st_mode) ||
		file->stat.st_nlink == 0)
		return false;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		give_up(link);
	path[length] = '\0';
	inner = inner_path(path);
	if (inner == NULL)
		return false;
	file->fd = fd;
	file->space = strncmp(inner, "pg_wal/", 7) == 0 ? SPACE_WAL : SPACE_DATA;
	undo_path(path, file->stat.st_ino);
	file->undo = REAL(open) (path, O_RDWR | O_CLOEXEC | flags, 0600);
	if (file->undo < 0 && flags == 0 && errno == ENOENT)
		return false;
	if (file->undo < 0)
		give_up(path);
	while (fcntl(file->undo, F_OFD_SETLKW, &lock) != 0)
	{
		if (errno != EINTR)
			give_up("lock");
	}
	/* The size may have changed meanwhile. */
	if (fstat(fd, &file->stat) != 0)
		give_up("fstat");
	return true;
}

static void
finish(File *file)
{
	int			save_errno = errno;

	close(file->undo);
	errno = save_errno;
}

static void
put(File *file, const void *data, size_t size, off_t offset)
{
	if (REAL(pwrite) (file->undo, data, size, offset) != (ssize_t) size)
		give_up("undo file");
}

static void
save_block(File *file, int reader, int64_t block)
{
	Undo		undo;
	off_t		flag = undo_offset(block) + offsetof(Undo, is_valid);

	if (pread(file->undo, &undo.is_valid, sizeof(undo.is_valid), flag) ==
		sizeof(undo.is_valid) && undo.is_valid)
		return;
	memset(undo.data, 0, sizeof(undo.data));
	if (pread(reader, undo.data, BLOCK_SIZE, block * BLOCK_SIZE) < 0)
		give_up("pread");
	undo.is_valid = 1;
	put(file, &undo, sizeof(undo), undo_offset(block));
}

/*
 * Bytes from START to END are about to be changed, and perhaps the size.
 */
static void
save(File *file, off_t start, off_t end)
{
	Header		header;
	char		link[40];
	int			reader;

	if (pread(file->undo, &header, sizeof(header), 0) != sizeof(header))
	{
		header.state = UNDO_CHANGED;
		header.size = file->stat.st_size;
		put(file, &header, sizeof(header), 0);
	}
	if (end > header.size)
		end = header.size;
	if (start >= end)
		return;
	/* The descriptor may be good for writing only. */
	snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
	reader = REAL(open) (link, O_RDONLY | O_CLOEXEC);
	if (reader < 0)
		give_up(link);
	for (int64_t block = start / BLOCK_SIZE; block * BLOCK_SIZE < end; block++)
		save_block(file, reader, block);
	close(reader);
}

/* PATH has just been created as FD. */
static void
created(int fd)
{
	Header		header = {.state = UNDO_CREATED,.size = 0};
	File		file;

	if (!begin(&file, fd, O_CREAT))
		return;
	/* What an earlier file with that inode may have left. */
	if (REAL(ftruncate) (file.undo, 0) != 0)
		give_up("undo file");
	put(&file, &header, sizeof(header), 0);
	finish(&file);
}

/* PATH is about to lose its file. */
static void
forget(const char *path)
{
	struct stat stat;
	char		full[PATH_MAX];

	if (lstat(path, &stat) != 0 || !S_ISREG(stat.st_mode) || stat.st_nlink != 1 ||
		realpath(path, full) == NULL || inner_path(full) == NULL)
		return;
	undo_path(full, stat.st_ino);
	REAL(unlink) (full);
}

/* ---------------------------------------------------------------------------
 * Space
 * ---------------------------------------------------------------------------
 */

/* Takes as many bytes as there are left, of those that are wanted. */
static int64_t
take(Space space, int64_t wanted)
{
	int64_t    *left = &control->left[space];
	int64_t		before = __atomic_load_n(left, __ATOMIC_SEQ_CST);
	int64_t		taken;

	do
	{
		if (before == UNLIMITED)
			return wanted;
		taken = before < wanted ? before : wanted;
	} while (!__atomic_compare_exchange_n(left, &before, before - taken, false,
										  __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	return taken;
}

/* How much of a write of LENGTH bytes there is room for. */
static int64_t
room(const File *file, off_t offset, int64_t length)
{
	int64_t		for_free = 0;
	int64_t		fitting;

	if (file->space == SPACE_DATA && offset < file->stat.st_size)
		for_free = file->stat.st_size - offset;
	if (for_free >= length)
		return length;
	fitting = for_free + take(file->space, length - for_free);
	if (fitting < length)
		__atomic_add_fetch(&control->refusals[file->space], 1, __ATOMIC_SEQ_CST);
	return fitting;
}

/* ---------------------------------------------------------------------------
 * What stands for functions of the C library
 * ---------------------------------------------------------------------------
 */

/* Cuts VECTORS to LENGTH bytes; how many of them remain. */
static int
cut(struct iovec *vectors, int count, size_t length)
{
	for (int i = 0; i < count; i++)
	{
		if (vectors[i].iov_len >= length)
		{
			vectors[i].iov_len = length;
			return i + 1;
		}
		length -= vectors[i].iov_len;
	}
	return count;
}

ssize_t
pwritev(int fd, const struct iovec *vectors, int count, off_t offset)
{
	struct iovec some[MAX_VECTORS];
	int64_t		wanted = 0;
	int64_t		length;
	File		file;
	ssize_t		result = -1;

	if (count > MAX_VECTORS || !begin(&file, fd, O_CREAT))
		return REAL(pwritev) (fd, vectors, count, offset);
	memcpy(some, vectors, count * sizeof(struct iovec));
	for (int i = 0; i < count; i++)
		wanted += some[i].iov_len;
	length = room(&file, offset, wanted);
	if (length > 0 || wanted == 0)
	{
		save(&file, offset, offset + length);
		result = REAL(pwritev) (fd, some, cut(some, count, length), offset);
	}
	else
		errno = ENOSPC;
	finish(&file);
	return result;
}

ALSO(pwritev64, pwritev);

ssize_t
pwrite(int fd, const void *data, size_t size, off_t offset)
{
	struct iovec vector = {.iov_base = (void *) data,.iov_len = size};

	return pwritev(fd, &vector, 1, offset);
}

ALSO(pwrite64, pwrite);

ssize_t
write(int fd, const void *data, size_t size)
{
	off_t		offset;
	ssize_t		result;
	File		file;

	if (!begin(&file, fd, O_CREAT))
		return REAL(write) (fd, data, size);
	finish(&file);
	offset = lseek(fd, 0, SEEK_CUR);
	result = pwrite(fd, data, size, offset);
	if (result > 0)
		lseek(fd, offset + result, SEEK_SET);
	return result;
}

int
ftruncate(int fd, off_t size)
{
	File		file;
	int			result;

	if (!begin(&file, fd, O_CREAT))
		return REAL(ftruncate) (fd, size);
	save(&file, size, file.stat.st_size);
	result = REAL(ftruncate) (fd, size);
	finish(&file);
	return result;
}

ALSO(ftruncate64, ftruncate);

int
truncate(const char *path, off_t size)
{
	int			fd = open(path, O_WRONLY);
	int			result;
	int			save_errno;

	if (fd < 0)
		return -1;
	result = ftruncate(fd, size);
	save_errno = errno;
	close(fd);
	errno = save_errno;
	return result;
}

ALSO(truncate64, truncate);

int
posix_fallocate(int fd, off_t offset, off_t size)
{
	File		file;
	int			result = ENOSPC;

	if (!begin(&file, fd, O_CREAT))
		return REAL(posix_fallocate) (fd, offset, size);
	if (room(&file, offset, size) == size)
	{
		save(&file, offset, offset);
		result = REAL(posix_fallocate) (fd, offset, size);
	}
	finish(&file);
	return result;
}

ALSO(posix_fallocate64, posix_fallocate);

/* Whoever gets this copies by reading and writing. */
ssize_t
copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size,
				unsigned flags)
{
	(void) in;
	(void) in_offset;
	(void) out;
	(void) out_offset;
	(void) size;
	(void) flags;
	errno = ENOSYS;
	return -1;
}

int
open(const char *path, int flags,...)
{
	mode_t		mode = 0;
	va_list		args;
	int			fd;

	if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE)
	{
		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	if ((flags & (O_DSYNC | O_DIRECT)) && (flags & O_ACCMODE) != O_RDONLY)
	{
		errno = EINVAL;
		return -1;
	}
	if ((flags & O_CREAT) && access(path, F_OK) != 0)
	{
		fd = REAL(open) (path, flags, mode);
		if (fd >= 0)
			created(fd);
		return fd;
	}
	fd = REAL(open) (path, flags & ~O_TRUNC, mode);
	if (fd >= 0 && (flags & O_TRUNC) && ftruncate(fd, 0) != 0)
		give_up("O_TRUNC");
	return fd;
}

ALSO(open64, open);

/* Of a file that has no undo file the disk has all. */
int
fdatasync(int fd)
{
	File		file;
	int			result;

	if (!begin(&file, fd, 0))
		return 0;
	result = REAL(fdatasync) (fd);
	if (result == 0 && REAL(ftruncate) (file.undo, 0) != 0)
		give_up("undo file");
	finish(&file);
	return result;
}

int
fsync(int fd)
{
	return fdatasync(fd);
}

int
unlink(const char *path)
{
	forget(path);
	return REAL(unlink) (path);
}

int
rename(const char *from, const char *to)
{
	forget(to);
	return REAL(rename) (from, to);
}
