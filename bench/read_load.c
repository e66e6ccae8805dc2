/* SPDX-License-Identifier: Apache-2.0 */
/* read_load COUNT PATH: COUNT reads of 512 bytes, the most that a record has of them and one. Waits for
 * the end of its input first; prints the nanoseconds of CPU that all calls took. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 0;
	int fd = argc > 2 ? open(argv[2], O_RDONLY) : -1;
	struct timespec from, to;
	char data[512];

	while (read(0, data, 1) > 0)
		;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	for (long i = 0; i < count; i++)
		if (read(fd, data, sizeof(data)) != sizeof(data))
			return 1;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	printf("%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec);
	return 0;
}
