/* Between a program and the C library: clocks that whoever writes the file CLOCKS puts on.
   Two 64-bit numbers of seconds: for the wall clock, and for the time since boot. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *put_on;

__attribute__((constructor)) static void begin(void)
{
	int file = open(getenv("CLOCKS"), O_RDONLY | O_CLOEXEC);
	void *map = mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);

	if (map == MAP_FAILED)
		abort();
	put_on = map;
	close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = syscall(SYS_clock_gettime, clock, time);

	if (result == 0 && put_on && clock == CLOCK_REALTIME)
		time->tv_sec += put_on[0];
	if (result == 0 && put_on && (clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME))
		time->tv_sec += put_on[1];
	return result;
}
