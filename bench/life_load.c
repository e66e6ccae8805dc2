/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lives of processes, a mode each; what is known of them is printed for bench/life.py to compare.
 *
 *   short COUNT WORKERS  COUNT children, one after the other in each of WORKERS processes; every
 *                        16th runs a program. Prints how often a pid was below the one before.
 *   crowd COUNT          COUNT children at once, until the input ends
 *   zombies COUNT        COUNT children that ended and are not waited for until the input ends
 *   orphans COUNT LEVEL  COUNT children whose parent ends first; LEVEL of sub-reapers above them,
 *                        of which the innermost waits for them
 *   reuse PID COUNT      COUNT children that all have one pid, each running a program
 *   heirs PID            a child with this pid, which has a child; until the input ends
 *   threads COUNT        COUNT children whose second thread runs a program
 *   bomb                 forks in all processes, until no more are allowed; ends with its cgroup
 *   nothing              ends at once
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static pid_t fork_or_die(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	return pid;
}

static void run(const char *word)
{
	execl("/proc/self/exe", "life", "nothing", word, NULL);
	_exit(127);
}

/* Wait for all children; each must have ended well. */
static void reap(long count)
{
	int status;

	for (long i = 0; i < count; i++) {
		if (wait(&status) < 0 || status)
			die("wait");
	}
}

static void say_and_wait(const char *what, long number)
{
	char byte;

	printf("%s %ld\n", what, number);
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
}

static long one_after_the_other(long count)
{
	long turns = 0;
	pid_t last = 0, pid;

	for (long i = 0; i < count; i++) {
		pid = fork_or_die();
		if (pid == 0) {
			if (i % 16 == 0)
				run("short");
			_exit(0);
		}
		turns += pid < last;
		last = pid;
		reap(1);
	}
	return turns;
}

static int many_short(long count, int workers)
{
	int ends[2];
	long turns, most = 0;

	if (pipe(ends))
		die("pipe");
	for (int i = 0; i < workers; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			turns = one_after_the_other(count / workers + (i < count % workers));
			_exit(write(ends[1], &turns, sizeof(turns)) != sizeof(turns));
		}
	}
	reap(workers);
	for (int i = 0; i < workers; i++) {
		if (read(ends[0], &turns, sizeof(turns)) != sizeof(turns))
			die("read");
		most = turns > most ? turns : most;
	}
	printf("turns %ld\n", most);
	return 0;
}

static int crowd(long count)
{
	int ends[2];
	char byte;

	if (pipe(ends))
		die("pipe");
	for (long i = 0; i < count; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			close(ends[1]);
			_exit(read(ends[0], &byte, 1) != 0);
		}
	}
	say_and_wait("crowd", count);
	close(ends[1]);
	reap(count);
	return 0;
}

static int zombies(long count)
{
	siginfo_t info;

	for (long i = 0; i < count; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0)
			_exit(0);
		if (waitid(P_PID, pid, &info, WEXITED | WNOWAIT))
			die("waitid");
	}
	say_and_wait("zombies", count);
	reap(count);
	return 0;
}

static int orphans(long count, int level)
{
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		die("prctl");
	if (level > 1) {
		pid_t pid = fork_or_die();
		if (pid == 0)
			exit(orphans(count, level - 1));
		reap(1);
		return 0;
	}
	int held[2];
	char byte;

	if (pipe(held))
		die("pipe");
	for (long i = 0; i < count; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			pid_t middle = getpid(), inner = fork();
			if (inner < 0)
				_exit(1);
			if (inner == 0) {
				close(held[1]);
				_exit(read(held[0], &byte, 1) != 0 || getppid() == middle);
			}
			_exit(0);
		}
		if (waitpid(pid, NULL, 0) != pid)
			die("waitpid");
	}
	say_and_wait("orphans", getpid());
	close(held[1]);
	reap(count);
	return 0;
}

static int reuse(pid_t pid, long count)
{
	for (long i = 0; i < count; i++) {
		struct clone_args args = {
			.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1,
		};
		char word[32];
		long made = syscall(SYS_clone3, &args, sizeof(args));
		if (made < 0)
			die("clone3");
		if (made == 0) {
			snprintf(word, sizeof(word), "%ld", i);
			run(word);
		}
		if (made != pid)
			return 1;
		reap(1);
	}
	return 0;
}

static int heirs(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1,
	};
	int held[2];
	char byte;

	if (pipe(held))
		die("pipe");
	long made = syscall(SYS_clone3, &args, sizeof(args));
	if (made < 0)
		die("clone3");
	if (made == 0) {
		pid_t inner = fork();
		if (inner < 0)
			_exit(1);
		close(held[1]);
		if (read(held[0], &byte, 1))
			_exit(1);
		if (inner)
			reap(1);
		_exit(0);
	}
	say_and_wait("heirs", made);
	close(held[1]);
	reap(1);
	return 0;
}

static void *run_from_thread(void *unused)
{
	(void)unused;
	run("thread");
	return NULL;
}

static int threads(long count)
{
	for (long i = 0; i < count; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			pthread_t thread;
			if (pthread_create(&thread, NULL, run_from_thread, NULL))
				_exit(1);
			for (;;)
				pause();
		}
		reap(1);
	}
	return 0;
}

static _Noreturn void bomb(void)
{
	pid_t first = getpid();

	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		pid_t pid = fork();
		if (pid < 0) {
			if (errno != EAGAIN)
				die("fork");
			if (getpid() == first) {
				printf("refused 1\n");
				fflush(stdout);
			}
			for (;;)
				pause();
		}
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long first = argc > 2 ? atol(argv[2]) : 0, second = argc > 3 ? atol(argv[3]) : 0;

	if (!strcmp(mode, "nothing"))
		return 0;
	if (!strcmp(mode, "short"))
		return many_short(first, second);
	if (!strcmp(mode, "crowd"))
		return crowd(first);
	if (!strcmp(mode, "zombies"))
		return zombies(first);
	if (!strcmp(mode, "orphans"))
		return orphans(first, second);
	if (!strcmp(mode, "reuse"))
		return reuse(first, second);
	if (!strcmp(mode, "heirs"))
		return heirs(first);
	if (!strcmp(mode, "threads"))
		return threads(first);
	if (!strcmp(mode, "bomb"))
		bomb();
	return 2;
}
