/* SPDX-License-Identifier: Apache-2.0 */
/*
 * overhead_load MODE COUNT PATH [RATE]: one thing again and again; prints the nanoseconds that it took.
 *
 *   open     open PATH for reading, and close it
 *   exec     run PATH, and wait for its end
 *   paced    open, RATE times a second, a millisecond's worth at once; 0: as fast as it goes
 *   getppid  a system call that nobody asks about
 *   connect  connect to a socket of our own over loopback, and close both ends
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void open_once(const char *path)
{
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		die(path);
	close(fd);
}

static void exec_once(const char *path)
{
	int status;
	pid_t pid = vfork();
	if (pid == 0) {
		execl(path, path, "nothing", (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		die(path);
}

static void connect_once(int server, const struct sockaddr_in *address)
{
	/* Closed with a reset, so that no port waits to be used again. */
	struct linger linger = {.l_onoff = 1};
	int client = socket(AF_INET, SOCK_STREAM, 0), taken;
	if (client < 0 || connect(client, (const void *)address, sizeof(*address)))
		die("connect");
	taken = accept(server, NULL, NULL);
	if (taken < 0)
		die("accept");
	setsockopt(client, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(client);
	close(taken);
}

static void open_paced(const char *path, long count, long rate)
{
	struct timespec next;
	long done = 0, due;

	clock_gettime(CLOCK_MONOTONIC, &next);
	for (long turn = 1; done < count; turn++) {
		due = rate ? rate * turn / 1000 : count;
		for (; done < due && done < count; done++)
			open_once(path);
		next.tv_nsec += 1000000;
		if (next.tv_nsec >= 1000000000) {
			next.tv_nsec -= 1000000000;
			next.tv_sec++;
		}
		if (done < count)
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	struct timespec from, to;

	if (argc != 4 && argc != 5)
		return argc == 2 && !strcmp(argv[1], "nothing") ? 0 : 2;
	long count = atol(argv[2]);
	int server = socket(AF_INET, SOCK_STREAM, 0);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (server < 0 || bind(server, (void *)&address, size) || listen(server, 16) ||
	    getsockname(server, (void *)&address, &size))
		die("socket");
	clock_gettime(CLOCK_MONOTONIC, &from);
	if (argc == 5) {
		open_paced(argv[3], count, atol(argv[4]));
		count = 0;
	}
	for (long i = 0; i < count; i++) {
		if (argv[1][0] == 'o')
			open_once(argv[3]);
		else if (argv[1][0] == 'e')
			exec_once(argv[3]);
		else if (argv[1][0] == 'g')
			syscall(SYS_getppid);
		else
			connect_once(server, &address);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec);
	return 0;
}
