/* SPDX-License-Identifier: Apache-2.0 */
/*
 * openat_load COUNT PATH [RATE]: COUNT calls of openat(AT_FDCWD, PATH, O_RDONLY) at full speed, on a
 * path that does not exist. With a RATE so many a second, spread over milliseconds, on PATHS paths
 * below PATH. Waits for the end of its input first; prints the nanoseconds of CPU that all calls
 * took, so that what else runs does not count. Linked statically, so that it opens nothing else.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PATHS 4096

int main(int argc, char **argv)
{
	struct timespec start, end, next;
	char byte;

	if (argc != 3 && argc != 4)
		return 2;
	long count = atol(argv[1]);
	long rate = argc == 4 ? atol(argv[3]) : 0;
	long done_of = 0, millisecond = 0;
	const char *path = argv[2];
	static char paths[PATHS][128];
	unsigned int state = 7710;

	for (int i = 0; i < PATHS; i++)
		snprintf(paths[i], sizeof(paths[i]), "%.100s/%d", argv[2], i);
	while (read(0, &byte, 1) > 0)
		;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (long i = 0; i < count; i++) {
		while (rate && i >= done_of) {
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
			next.tv_nsec += 1000000;
			if (next.tv_nsec >= 1000000000) {
				next.tv_nsec -= 1000000000;
				next.tv_sec++;
			}
			done_of = rate * ++millisecond / 1000;
		}
		if (rate) {
			state = state * 1664525 + 1013904223;
			path = paths[(state >> 16) % PATHS];
		}
		if (syscall(SYS_openat, AT_FDCWD, path, O_RDONLY) >= 0)
			return 1;
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
	printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
	return 0;
}
