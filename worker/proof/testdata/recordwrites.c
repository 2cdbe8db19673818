/*
 * Records what a program does to the files of one folder, so that a test can build what a disk may
 * hold after a power failure: everything up to the last fsync, and any part of what followed.
 *
 *   gcc -shared -fPIC -o recordwrites.so recordwrites.c
 *   RECORD_DIR=/data RECORD_LOG=/tmp/log LD_PRELOAD=./recordwrites.so program
 *
 * A record is a line "operation nanoseconds offset size name", followed by size bytes of data. The
 * operations are create, write, truncate (to offset), sync, syncdir, unlink and rename (the data is
 * the new name). SQLite's shared memory (-shm) is not recorded: it is made anew after a failure.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILES 65536
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Held during an operation and its record, so that the log has the order of the operations. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *names[FILES]; /* of open files in the folder, by descriptor */
static const char *dir;
static int out = -1;

__attribute__((constructor)) static void init(void) {
	dir = getenv("RECORD_DIR");
	const char *log = getenv("RECORD_LOG");
	if (dir && log)
		out = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* inside returns the name of a path within the folder, "" for the folder, NULL for other paths. */
static const char *inside(const char *path) {
	size_t n = dir ? strlen(dir) : 0;
	if (out < 0 || !path || strncmp(path, dir, n) != 0)
		return NULL;
	const char *name = path + n;
	if (*name == '/')
		name++;
	else if (*name)
		return NULL;
	size_t length = strlen(name);
	return length > 4 && strcmp(name + length - 4, "-shm") == 0 ? NULL : name;
}

static const char *name_of(int fd) { return fd >= 0 && fd < FILES ? names[fd] : NULL; }

static void record(const char *operation, const char *name, off_t offset, const void *data, size_t size) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	char head[PATH_MAX + 100];
	int n = snprintf(head, sizeof head, "%s %lld %lld %zu %s\n", operation,
		(long long)now.tv_sec * 1000000000 + now.tv_nsec, (long long)offset, size, name);
	struct iovec parts[] = {{head, n}, {(void *)data, size}};
	if (writev(out, parts, 2) != (ssize_t)(n + size))
		abort();
}

static int opened(int fd, const char *name, int fresh) {
	if (fd >= 0 && fd < FILES) {
		names[fd] = strdup(name);
		if (fresh)
			record("create", name, 0, NULL, 0);
	}
	return fd;
}

static int open_as(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
	const char *name = inside(path);
	if (!name)
		return real(path, flags, mode);
	pthread_mutex_lock(&lock);
	struct stat info;
	int fresh = (flags & O_CREAT) && stat(path, &info) != 0;
	int fd = opened(real(path, flags, mode), name, fresh);
	pthread_mutex_unlock(&lock);
	return fd;
}

#define OPEN(function)                                                                             \
	int function(const char *path, int flags, ...) {                                           \
		va_list list;                                                                      \
		va_start(list, flags);                                                             \
		mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;                          \
		va_end(list);                                                                      \
		return open_as(REAL(function), path, flags, mode);                                 \
	}
OPEN(open)
OPEN(open64)

int close(int fd) {
	pthread_mutex_lock(&lock);
	if (name_of(fd)) {
		free(names[fd]);
		names[fd] = NULL;
	}
	int result = REAL(close)(fd);
	pthread_mutex_unlock(&lock);
	return result;
}

static ssize_t wrote(int fd, const void *data, ssize_t size, off_t offset) {
	if (size > 0)
		record("write", name_of(fd), offset, data, size);
	return size;
}

#define PWRITE(function)                                                                           \
	ssize_t function(int fd, const void *data, size_t size, off_t offset) {                    \
		if (!name_of(fd))                                                                  \
			return REAL(function)(fd, data, size, offset);                             \
		pthread_mutex_lock(&lock);                                                         \
		ssize_t n = wrote(fd, data, REAL(function)(fd, data, size, offset), offset);       \
		pthread_mutex_unlock(&lock);                                                       \
		return n;                                                                          \
	}
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t size) {
	if (!name_of(fd))
		return REAL(write)(fd, data, size);
	pthread_mutex_lock(&lock);
	off_t offset = lseek(fd, 0, SEEK_CUR);
	ssize_t n = wrote(fd, data, REAL(write)(fd, data, size), offset);
	pthread_mutex_unlock(&lock);
	return n;
}

#define CHANGE(function, parameters, arguments, operation, name, offset, data, size)               \
	int function parameters {                                                                  \
		const char *known = name;                                                          \
		if (!known)                                                                        \
			return REAL(function) arguments;                                           \
		pthread_mutex_lock(&lock);                                                         \
		int result = REAL(function) arguments;                                             \
		if (result == 0)                                                                   \
			record(operation, known, offset, data, size);                              \
		pthread_mutex_unlock(&lock);                                                       \
		return result;                                                                     \
	}
#define SYNC (*name_of(fd) ? "sync" : "syncdir")
CHANGE(ftruncate, (int fd, off_t size), (fd, size), "truncate", name_of(fd), size, NULL, 0)
CHANGE(ftruncate64, (int fd, off_t size), (fd, size), "truncate", name_of(fd), size, NULL, 0)
CHANGE(fsync, (int fd), (fd), SYNC, name_of(fd), 0, NULL, 0)
CHANGE(fdatasync, (int fd), (fd), SYNC, name_of(fd), 0, NULL, 0)
CHANGE(unlink, (const char *path), (path), "unlink", inside(path), 0, NULL, 0)
CHANGE(rename, (const char *from, const char *to), (from, to), "rename", inside(from), 0, inside(to),
	strlen(inside(to)))
