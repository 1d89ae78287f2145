/* Between a program and the C library: ends the process at its CUT_AT-th call that makes bytes durable or takes their
   place, counted over all threads, before the call does anything. The file CUT is told which call it was. Where there is
   CUT_CALL, "unlink state/checkpoint", only those count. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *cut, *only;
static long cut_at;
static atomic_long calls;

__attribute__((constructor)) static void begin(void)
{
	cut = getenv("CUT");
	cut_at = atol(getenv("CUT_AT"));
	only = getenv("CUT_CALL");
	/* Not for what the program starts. */
	unsetenv("LD_PRELOAD");
}

static int counts(const char *call, const char *path)
{
	size_t named = strlen(call), length = strlen(path), wanted;

	if (!only || !*only)
		return 1;
	if (strncmp(only, call, named) || only[named] != ' ')
		return 0;
	wanted = strlen(only + named + 1);
	return length > wanted && path[length - wanted - 1] == '/' && !strcmp(path + length - wanted, only + named + 1);
}

static void count(const char *call, const char *path)
{
	int file;

	if (!counts(call, path))
		return;
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
