/*
 * disk.h
 *		What the disk has, apart from what the page cache has: the state that
 *		disk.c keeps and power.c reads.
 *
 * It lies in a directory of its own, outside of the data directory, and is not
 * durable itself: it has to survive processes, not the machine.
 *
 *	control		a Control
 *	undo/<inode>	for each file that was written: how to get back to what the
 *				disk has of it.  Empty if the disk has all.
 *
 * A file of undo begins with a Header.  Block n of the file, if it was changed
 * and the disk has an older version of it, has its Undo at undo_offset(n); the
 * rest are holes.
 *
 * test/chaos/disk.h
 */
#ifndef CHAOS_DISK_H
#define CHAOS_DISK_H

#include <stdint.h>
#include <sys/types.h>

#define BLOCK_SIZE 8192
#define SECTOR_SIZE 512

typedef enum Space
{
	SPACE_DATA,
	SPACE_WAL
} Space;

#define UNLIMITED (-1)

/* For each space: the bytes that are free, and how often they were missed. */
typedef struct Control
{
	int64_t		left[2];
	int64_t		refusals[2];
} Control;

/* Header.state; a file without a header has 0. */
#define UNDO_CHANGED 1			/* the disk has the file, of that size */
#define UNDO_CREATED 2			/* the disk does not have the file */

typedef struct Header
{
	int64_t		state;
	int64_t		size;
} Header;

typedef struct Undo
{
	char		data[BLOCK_SIZE];
	int64_t		is_valid;		/* last: it was written completely */
} Undo;

static inline off_t
undo_offset(int64_t block)
{
	return sizeof(Header) + block * sizeof(Undo);
}

#endif							/* CHAOS_DISK_H */
