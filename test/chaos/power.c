/*
 * power.c
 *		The power fails: makes of a data directory what the disk had.
 *
 * usage: power DATA DISK SEED
 *
 * DATA is the data directory, DISK is where disk.c has kept its state; all
 * processes of the server have been killed.  SEED modulo 4 says what of that which
 * was not synced has not reached the disk: 0 everything; 1 each file as a whole,
 * 2 each block, 3 each sector, if the random numbers that begin with SEED say so.
 * Likewise for sizes, and for files that are new.
 *
 * A process that was killed in a write has the lock of the undo file until the
 * write is over.
 *
 * Prints what there was to lose and what was lost: "files=2 sectors=48 lost=17".
 *
 * test/chaos/power.c
 */
#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is lost or kept as a whole. */
typedef enum Unit
{
	UNIT_EVERYTHING,
	UNIT_FILE,
	UNIT_BLOCK,
	UNIT_SECTOR
} Unit;

static const char *disk;
static Unit unit;
static uint64_t random_state;
static int	nfiles = 0;
static int	nsectors = 0;
static int	nlost = 0;

static void
__attribute__((noreturn))
die(const char *what)
{
	fprintf(stderr, "power: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* splitmix64 */
static bool
flip(void)
{
	uint64_t	x = random_state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (x ^ (x >> 31)) & 1;
}

/* Is the next sector lost, if it begins a block or not?  One answer for each unit. */
static bool
is_lost(bool begins_block)
{
	static bool answer = true;

	if (unit == UNIT_SECTOR || (unit == UNIT_BLOCK && begins_block))
		answer = flip();
	return answer;
}

/*
 * Puts a block back, or what was lost of it.  Behind what the disk had of the
 * file there are zeros.
 */
static void
restore_block(int fd, int64_t block, const Undo *undo)
{
	for (int i = 0; i < BLOCK_SIZE; i += SECTOR_SIZE)
	{
		nsectors++;
		if (!is_lost(i == 0))
			continue;
		nlost++;
		if (pwrite(fd, undo->data + i, SECTOR_SIZE, block * BLOCK_SIZE + i) != SECTOR_SIZE)
			die("write");
	}
}

static void
restore(const char *path, off_t size, int undo_fd)
{
	static const Undo zeros;
	Header		header;
	Undo		undo;
	off_t		longest;
	int			fd;

	if (pread(undo_fd, &header, sizeof(header), 0) != sizeof(header))
		return;
	nfiles++;
	if (unit == UNIT_FILE && flip())
		return;
	if (header.state == UNDO_CREATED && (unit == UNIT_EVERYTHING || flip()))
	{
		if (unlink(path) != 0)
			die(path);
		return;
	}
	fd = open(path, O_RDWR);
	if (fd < 0)
		die(path);
	longest = size > header.size ? size : header.size;
	for (int64_t block = 0; block * BLOCK_SIZE < longest; block++)
	{
		if (pread(undo_fd, &undo, sizeof(undo), undo_offset(block)) == sizeof(undo) &&
			undo.is_valid)
			restore_block(fd, block, &undo);
		else if (block * BLOCK_SIZE >= header.size)
			restore_block(fd, block, &zeros);
	}
	if (ftruncate(fd, is_lost(true) ? header.size : size) != 0)
		die(path);
	close(fd);
}

static int
visit(const char *path, const struct stat *stat, int type, struct FTW *walk)
{
	struct flock lock = {.l_type = F_WRLCK,.l_whence = SEEK_SET};
	char		undo[PATH_MAX];
	struct stat now;
	int			fd;

	(void) walk;
	if (type != FTW_F)
		return 0;
	snprintf(undo, sizeof(undo), "%s/undo/%llu", disk, (unsigned long long) stat->st_ino);
	fd = open(undo, O_RDWR);
	if (fd < 0)
		return 0;
	if (fcntl(fd, F_OFD_SETLKW, &lock) != 0 || lstat(path, &now) != 0)
		die(path);
	restore(path, now.st_size, fd);
	close(fd);
	if (unlink(undo) != 0)
		die(undo);
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc != 4)
	{
		fprintf(stderr, "usage: power DATA DISK SEED\n");
		return 2;
	}
	disk = argv[2];
	random_state = strtoull(argv[3], NULL, 10);
	unit = random_state % 4;
	if (nftw(argv[1], visit, 20, FTW_PHYS) != 0)
		die(argv[1]);
	printf("files=%d sectors=%d lost=%d\n", nfiles, nsectors, nlost);
	return 0;
}
