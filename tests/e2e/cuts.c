/* Between a program and the C library: ends the process at its CUT_AT-th call that makes bytes durable or takes their
   place, counted over all threads, before the call does anything. The file CUT is told which call it was. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *cut;
static long cut_at;
static atomic_long calls;

__attribute__((constructor)) static void begin(void)
{
	cut = getenv("CUT");
	cut_at = atol(getenv("CUT_AT"));
	/* Not for what the program starts. */
	unsetenv("LD_PRELOAD");
}

static void count(const char *call, const char *path)
{
	int file;

	if (atomic_fetch_add(&calls, 1) + 1 != cut_at)
		return;
	file = open(cut, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	dprintf(file, "%s %s", call, path);
	kill(getpid(), SIGKILL);
	pause();
}

static void count_file(const char *call, int file)
{
	char link[32], path[PATH_MAX] = "";

	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	if (readlink(link, path, sizeof path - 1) < 0)
		abort();
	count(call, path);
}

int fsync(int file)
{
	count_file("sync", file);
	return syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
	count_file("sync", file);
	return syscall(SYS_fdatasync, file);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset)
{
	count_file("write", file);
	return syscall(SYS_pwrite64, file, bytes, length, offset);
}

int rename(const char *from, const char *to)
{
	count("rename", from);
	return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path)
{
	count("unlink", path);
	return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
