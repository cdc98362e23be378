/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Request and response over TCP, for the latency benchmarks.
 *
 *   rr serve PORT          echoes 64 octets at a time to whoever connects; prints "ready"
 *   rr ask ADDRESS PORT    reads lines "rr N" and "crr N": N exchanges over one connection that stays open, or N connections
 *                          with one exchange each. Prints nanoseconds a piece for each line.
 *
 * Connections of crr end with a reset, so that no port has to wait.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 64

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void at_once(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve(int port)
{
	struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, events[64];
	char message[MESSAGE];

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&own, sizeof(own)) < 0 || listen(listener, 1024) < 0)
		fail("listen");
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (fd == listener) {
				struct epoll_event added = { .events = EPOLLIN, .data.fd = accept(listener, NULL, NULL) };

				if (added.data.fd < 0)
					continue;
				at_once(added.data.fd);
				epoll_ctl(epoll, EPOLL_CTL_ADD, added.data.fd, &added);
			} else if (read(fd, message, MESSAGE) != MESSAGE || write(fd, message, MESSAGE) != MESSAGE) {
				close(fd);
			}
		}
	}
}

static int open_to(const struct sockaddr_in *server)
{
	struct linger linger = { .l_onoff = 1 };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)server, sizeof(*server)) < 0)
		fail("connect");
	at_once(fd);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	return fd;
}

static void exchange(int fd)
{
	char message[MESSAGE] = "";

	if (write(fd, message, MESSAGE) != MESSAGE || recv(fd, message, MESSAGE, MSG_WAITALL) != MESSAGE)
		fail("exchange");
}

static void ask(const char *address, int port)
{
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct timespec from, to;
	char verb[8];
	int kept, times;

	if (inet_pton(AF_INET, address, &server.sin_addr) != 1)
		fail(address);
	kept = open_to(&server);
	exchange(kept);
	printf("ready\n");
	fflush(stdout);
	while (scanf("%7s %d", verb, &times) == 2) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int i = 0; i < times; i++) {
			int fd = strcmp(verb, "crr") ? kept : open_to(&server);

			exchange(fd);
			if (fd != kept)
				close(fd);
		}
		clock_gettime(CLOCK_MONOTONIC, &to);
		printf("%.0f\n", ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / times);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	else if (argc == 4 && !strcmp(argv[1], "ask"))
		ask(argv[2], atoi(argv[3]));
	else
		return fprintf(stderr, "usage: rr serve PORT | rr ask ADDRESS PORT\n"), 2;
	return 0;
}
