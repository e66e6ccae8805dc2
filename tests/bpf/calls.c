/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the syscalls that its command line says, one after the other, in a folder:
 *
 *   calls FOLDER [native|compat] NUMBER ARGUMENT... -- ...
 *
 * compat goes through the 32-bit ABI (int 0x80). Arguments:
 *
 *   nNUMBER   a number
 *   sTEXT     where a string is
 *   xHEX      where these bytes are; in them, &N is where the N-th string or bytes of the call are, in 4
 *             bytes
 *   -WORD     one of these two that is laid down and is no argument
 *   rN        what the N-th call (from 0) returned
 *   p, q      the process id of this process, of its parent
 *
 * It prints its own process id and its parent's, and then what each call returned, a line each:
 * the result, or the negative error number. A child that a call makes ends at once.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CALLS_MAX 32
#define PLACES_MAX 8
#define MEMORY (1 << 16)

/* Both are inlined, with no frame of their own: a child of vfork shares the stack. */
#define INLINE static inline __attribute__((always_inline))

INLINE long native(long number, const long *a)
{
	register long fourth asm("r10") = a[3], fifth asm("r8") = a[4], sixth asm("r9") = a[5];
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(fourth), "r"(fifth),
		       "r"(sixth)
		     : "memory", "rcx", "r11");
	return result;
}

INLINE long compat(long number, const long *a)
{
	long result;

	/* ebp has the sixth argument. int 0x80 leaves r8 to r11 undefined. */
	asm volatile("push %%rbp\n\tmov %[sixth], %%rbp\n\tint $0x80\n\tpop %%rbp"
		     : "=a"(result)
		     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]),
		       [sixth] "r"(a[5])
		     : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

int main(int argc, char **argv)
{
	long results[CALLS_MAX] = {0};
	int count = 0, at = 2, self = getpid();
	/* The 32-bit ABI sees the low half of a pointer. */
	char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (argc < 4 || memory == MAP_FAILED || chdir(argv[1]))
		return 2;
	printf("%d\n%d\n", getpid(), getppid());
	while (at + 1 < argc && count < CALLS_MAX) {
		int is_compat = !strcmp(argv[at], "compat"), n = 0;
		long number = atol(argv[at + 1]), a[6] = {0}, none[6] = {0};
		unsigned places[PLACES_MAX] = {0};
		int count_of_places = 0;

		for (at += 2; at < argc && strcmp(argv[at], "--"); at++) {
			const char *word = argv[at];
			long value = 0;
			unsigned byte;
			int is_argument = word[0] != '-';

			word += !is_argument;

			switch (word[0]) {
			case 'n': value = (long)strtoull(word + 1, NULL, 0); break;
			case 'r': value = results[atoi(word + 1) % CALLS_MAX]; break;
			case 'p': value = getpid(); break;
			case 'q': value = getppid(); break;
			case 's':
				value = (long)memory;
				places[count_of_places++ % PLACES_MAX] = value;
				memory = stpcpy(memory, word + 1) + 1;
				break;
			case 'x':
				value = (long)memory;
				for (word++; *word; word += 2) {
					if (*word == '&') {
						memcpy(memory, places + (word[1] - '0') % PLACES_MAX, 4);
						memory += 4;
					} else if (sscanf(word, "%2x", &byte) == 1) {
						*memory++ = byte;
					} else {
						return 2;
					}
				}
				places[count_of_places++ % PLACES_MAX] = value;
				memory += 256;
				break;
			default: return 2;
			}
			if (is_argument && n < 6)
				a[n++] = value;
		}
		at++;
		fflush(stdout); /* an exec or a child that follows has nothing to print */
		results[count] = is_compat ? compat(number, a) : native(number, a);
		if (native(SYS_getpid, none) != self)
			native(SYS_exit_group, none);
		printf("%ld\n", results[count++]);
	}
	return 0;
}
