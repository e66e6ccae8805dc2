/* SPDX-License-Identifier: Apache-2.0 */
/*
 * openat_load COUNT PATH: COUNT calls of openat(AT_FDCWD, PATH, O_RDONLY) at full speed, on a path
 * that does not exist. Waits for the end of its input first; prints the nanoseconds that all calls
 * took. Linked statically, so that it opens nothing else.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec start, end;
	char byte;

	if (argc != 3)
		return 2;
	long count = atol(argv[1]);
	while (read(0, &byte, 1) > 0)
		;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (long i = 0; i < count; i++) {
		if (syscall(SYS_openat, AT_FDCWD, argv[2], O_RDONLY) >= 0)
			return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
	return 0;
}
