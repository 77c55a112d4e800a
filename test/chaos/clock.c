/*
 * clock.c
 *		A library for LD_PRELOAD: the clock of a server, which can be set.
 *
 * The file that CHAOS_CLOCK names has the number of microseconds by which the
 * clock is ahead, as an int64.  All processes of the server have it mapped, so
 * that whoever writes there sets the clock of all at once (lib/Clock.pm).  The
 * clock that only goes on, CLOCK_MONOTONIC, is left alone, as it is where
 * somebody sets the clock of a machine.
 *
 * libfaketime would do the same, but not for processes that PostgreSQL 15 starts
 * in a handler of a signal, as it does with background workers: it does not fake
 * what is called while it is in select(), as the postmaster is then.
 *
 * test/chaos/clock.c
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MILLION 1000000

static const int64_t right = 0;
static const volatile int64_t *ahead = &right;

static void
__attribute__((constructor))
map_file(void)
{
	const char *name = getenv("CHAOS_CLOCK");
	int			file = name ? open(name, O_RDONLY) : -1;
	void	   *page;

	if (file < 0)
		return;
	page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
	if (page != MAP_FAILED)
		ahead = page;
	close(file);
}

static int64_t
now_us(void)
{
	struct timespec t;

	syscall(SYS_clock_gettime, CLOCK_REALTIME, &t);
	return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000 + *ahead;
}

int
clock_gettime(clockid_t clock, struct timespec *t)
{
	int64_t		now;

	if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)
		return syscall(SYS_clock_gettime, clock, t);
	now = now_us();
	t->tv_sec = now / MILLION;
	t->tv_nsec = now % MILLION * 1000;
	return 0;
}

int
gettimeofday(struct timeval *restrict t, void *restrict zone)
{
	int64_t		now = now_us();

	(void) zone;
	t->tv_sec = now / MILLION;
	t->tv_usec = now % MILLION;
	return 0;
}

time_t
time(time_t *t)
{
	time_t		now = now_us() / MILLION;

	if (t)
		*t = now;
	return now;
}
