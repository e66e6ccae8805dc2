/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Known work for the capture tests, a mode each. What the kernel answered is printed, for the test
 * to compare with the records.
 *
 *   opens FOLDER COUNT   open, openat, openat2 in turn; every second one fails
 *   forks COUNT          fork, vfork, clone, clone3 in turn; the child exits with its index
 *   threads              the leader ends first; the last of three threads ends the process
 *   compat FOLDER PORT   calls through the 32-bit ABI (int 0x80)
 *   bad                  arguments that cannot be read
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int opens(const char *folder, int count)
{
	char path[512];

	for (int i = 0; i < count; i++) {
		struct open_how how = {.flags = O_CREAT | O_RDWR, .mode = 0640};
		snprintf(path, sizeof(path), i % 2 ? "%s/absent/%d" : "%s/%d", folder, i);
		long fd = i % 3 == 0   ? syscall(SYS_open, path, O_CREAT | O_RDWR, 0640)
			  : i % 3 == 1 ? syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_RDWR, 0640)
				       : syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
		printf("%ld\n", fd < 0 ? -(long)errno : fd);
		if (fd >= 0)
			close(fd);
	}
	return 0;
}

static int forks(int count)
{
	for (volatile int i = 0; i < count; i++) {
		struct clone_args args = {.exit_signal = SIGCHLD};
		int status;
		long pid;

		switch (i % 4) {
		case 0: pid = syscall(SYS_fork); break;
		case 1: pid = vfork(); break;
		case 2: pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); break;
		default: pid = syscall(SYS_clone3, &args, sizeof(args));
		}
		if (pid == 0)
			_exit(i % 256);
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			return 1;
		printf("%ld %d\n", pid, status);
	}
	return 0;
}

static void *wait_for_leader(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	return NULL;
}

static void *leave(void *unused)
{
	return unused;
}

static int threads(void)
{
	static pthread_t leader;
	pthread_t others[3];

	leader = pthread_self();
	pthread_create(&others[0], NULL, leave, NULL);
	pthread_create(&others[1], NULL, leave, NULL);
	pthread_create(&others[2], NULL, wait_for_leader, &leader);
	pthread_exit(NULL);
}

static long call32(long number, long a, long b, long c, long d)
{
	long result;
	/* int 0x80 leaves r8 to r11 undefined. */
	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d)
		     : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static int compat(const char *folder, int port)
{
	/* The 32-bit ABI sees the low half of a pointer. */
	char *low = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *address = (void *)(low + 1024);
	struct open_how *how = (void *)(low + 1200);
	uint32_t *args = (void *)(low + 1400);
	char *missing = low + 2048;
	long at = (long)low;

	if (low == MAP_FAILED)
		return 1;
	strcpy(low, folder);
	strcpy(missing, "/vedette/absent");
	how->flags = O_DIRECTORY;
	printf("open %ld\n", call32(5, at, O_DIRECTORY, 0, 0));
	printf("openat %ld\n", call32(295, AT_FDCWD, at, O_DIRECTORY, 0));
	printf("openat2 %ld\n", call32(437, AT_FDCWD, at, (long)how, sizeof(*how)));
	printf("open %ld\n", call32(5, (long)missing, O_RDONLY, 0, 0));
	printf("chdir %ld\n", call32(12, at, 0, 0, 0));
	printf("execve %ld\n", call32(11, (long)missing, 0, 0, 0));
	int one = socket(AF_INET, SOCK_STREAM, 0), two = socket(AF_INET, SOCK_STREAM, 0);
	address->sin_family = AF_INET;
	address->sin_port = htons(port);
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	printf("connect %ld\n", call32(362, one, (long)address, sizeof(*address), 0));
	args[0] = two;
	args[1] = (uint32_t)(uintptr_t)address;
	args[2] = sizeof(*address);
	printf("connect %ld\n", call32(102, 3, (long)args, 0, 0));
	args[1] = 5;
	printf("listen %ld\n", call32(102, 4, (long)args, 0, 0));
	return 0;
}

/* sendto and recvfrom through socketcall, sendmsg and recvmsg by their own numbers. */
static int datagrams(void)
{
	char *low = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *address = (void *)(low + 1024);
	uint32_t *args = (void *)(low + 1400), *message = (void *)(low + 1600);
	uint32_t *vector = (void *)(low + 1800), *size = (void *)(low + 1900);
	uint32_t data = (uint32_t)(uintptr_t)low, at = (uint32_t)(uintptr_t)address;
	socklen_t length = sizeof(*address);
	int one = socket(AF_INET, SOCK_DGRAM, 0), other = socket(AF_INET, SOCK_DGRAM, 0);
	int server = socket(AF_INET, SOCK_DGRAM, 0), third = socket(AF_INET, SOCK_DGRAM, 0);

	if (low == MAP_FAILED)
		return 1;
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(server, (void *)address, sizeof(*address)) ||
	    getsockname(server, (void *)address, &length))
		return 1;
	printf("%d\n", ntohs(address->sin_port));
	struct sockaddr_in served = *address;
	uint32_t call[] = {one, data, 1, 0, at, sizeof(*address)};
	memcpy(args, call, sizeof(call));
	if (call32(102, 11, (long)args, 0, 0) != 1)
		return 1;
	args[0] = server;
	args[5] = (uint32_t)(uintptr_t)size;
	*size = sizeof(*address);
	if (call32(102, 12, (long)args, 0, 0) != 1)
		return 1;
	*address = served;
	uint32_t header[] = {at, sizeof(*address), (uint32_t)(uintptr_t)vector, 1, 0, 0, 0};
	vector[0] = data;
	vector[1] = 1;
	memcpy(message, header, sizeof(header));
	if (call32(370, other, (long)message, 0, 0) != 1 ||
	    call32(372, server, (long)message, 0, 0) != 1)
		return 1;
	/* Two messages, each a struct msghdr and the length that the kernel writes. */
	*address = served;
	memcpy(message, header, sizeof(header));
	memcpy(message + 8, header, sizeof(header));
	if (call32(345, third, (long)message, 2, 0) != 2)
		return 1;
	uint32_t many[] = {server, (uint32_t)(uintptr_t)message, 2, 0, 0};
	memcpy(args, many, sizeof(many));
	return call32(102, 19, (long)args, 0, 0) != 2;
}

static int bad(void)
{
	char *nowhere = (char *)8;
	/* On the stack, so that its page is there: the kernel looks at it after what cannot be read. */
	char root[] = "/";
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	printf("openat %d\n", syscall(SYS_openat, AT_FDCWD, nowhere, O_RDONLY) < 0 ? -errno : 0);
	printf("openat2 %d\n",
	       syscall(SYS_openat2, AT_FDCWD, root, nowhere, sizeof(struct open_how)) < 0 ? -errno : 0);
	printf("connect %d\n", connect(fd, (void *)nowhere, 16) < 0 ? -errno : 0);
	printf("chdir %d\n", chdir(nowhere) < 0 ? -errno : 0);
	printf("fchdir %d\n", fchdir(999) < 0 ? -errno : 0);
	printf("execve %d\n", syscall(SYS_execve, nowhere, NULL, NULL) < 0 ? -errno : 0);
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "opens") && argc == 4)
		return opens(argv[2], atoi(argv[3]));
	if (!strcmp(mode, "forks") && argc == 3)
		return forks(atoi(argv[2]));
	if (!strcmp(mode, "threads"))
		return threads();
	if (!strcmp(mode, "compat") && argc == 4)
		return compat(argv[2], atoi(argv[3]));
	if (!strcmp(mode, "datagrams"))
		return datagrams();
	if (!strcmp(mode, "bad"))
		return bad();
	return 2;
}
