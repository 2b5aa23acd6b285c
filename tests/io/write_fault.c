/* LD_PRELOAD library that makes file output fail on purpose. It counts calls of write, pwrite, fsync and rename
 * (writes to the standard streams excluded) and, at call number FAULT_NTH (from 1), fails with the errno FAULT_KIND
 * names: ENOSPC, EDQUOT, EACCES, EIO or EINTR. FAULT_KIND=SHORT instead makes every write and pwrite from call
 * FAULT_NTH on accept only half of its bytes. Without FAULT_NTH it does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static atomic_int calls;

static const struct {
  const char* name;
  int value;
} kinds[] = {{"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EACCES", EACCES}, {"EIO", EIO}, {"EINTR", EINTR}};

/* 0: proceed; -1: shorten; otherwise the errno to fail with. */
static int verdict(int is_write) {
  const char* nth = getenv("FAULT_NTH");
  const char* kind = getenv("FAULT_KIND");
  if (!nth || !kind) return 0;
  const int call = atomic_fetch_add(&calls, 1) + 1;
  if (strcmp(kind, "SHORT") == 0) return is_write && call >= atoi(nth) ? -1 : 0;
  if (call != atoi(nth)) return 0;
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    if (strcmp(kind, kinds[i].name) == 0) return kinds[i].value;
  return EIO;
}

ssize_t write(int fd, const void* data, size_t n) {
  static ssize_t (*real)(int, const void*, size_t);
  if (!real) *(void**)(&real) = dlsym(RTLD_NEXT, "write");
  const int v = fd > 2 ? verdict(1) : 0;
  if (v > 0) {
    errno = v;
    return -1;
  }
  return real(fd, data, v < 0 && n > 1 ? n / 2 : n);
}

ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) {
  static ssize_t (*real)(int, const void*, size_t, off_t);
  if (!real) *(void**)(&real) = dlsym(RTLD_NEXT, "pwrite");
  const int v = verdict(1);
  if (v > 0) {
    errno = v;
    return -1;
  }
  return real(fd, data, v < 0 && n > 1 ? n / 2 : n, offset);
}

ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) {
  static ssize_t (*real)(int, const void*, size_t, off64_t);
  if (!real) *(void**)(&real) = dlsym(RTLD_NEXT, "pwrite64");
  const int v = verdict(1);
  if (v > 0) {
    errno = v;
    return -1;
  }
  return real(fd, data, v < 0 && n > 1 ? n / 2 : n, offset);
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) *(void**)(&real) = dlsym(RTLD_NEXT, "fsync");
  const int v = verdict(0);
  if (v > 0) {
    errno = v;
    return -1;
  }
  return real(fd);
}

int rename(const char* from, const char* to) {
  static int (*real)(const char*, const char*);
  if (!real) *(void**)(&real) = dlsym(RTLD_NEXT, "rename");
  const int v = verdict(0);
  if (v > 0) {
    errno = v;
    return -1;
  }
  return real(from, to);
}
