/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queries over TCP as stub resolvers send them: so many connections at a time, each with a few queries under way, each closed and
 * opened anew after so many. dnsperf sleeps between connections and does not open one anew that the server has closed, so it
 * cannot compare two servers of which one ends its connections.
 *
 *   dnstcp SERVER NAMES MILLISECONDS CONNECTIONS UNDER-WAY PER-CONNECTION
 *
 * NAMES: a file with a name in each line; A is asked, in turn. Prints "qps N failed M" (M: answers other than NOERROR, and queries
 * that a closed connection left without one).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NAMES_MAX 100000
#define CONNECTIONS_MAX 64

static struct connection {
	int fd, sent, heard;
	size_t have;
	unsigned char in[16384];
} connections[CONNECTIONS_MAX];
static struct query {
	unsigned short length;
	unsigned char octets[280];
} *queries;
static struct sockaddr_in server = { .sin_family = AF_INET };
static int names, next, poll_fd, under_way, each;
static long answered, failed;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void read_names(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[256];

	queries = calloc(NAMES_MAX, sizeof(*queries));
	if (!file || !queries)
		fail(path);
	while (names < NAMES_MAX && fgets(line, sizeof(line), file)) {
		struct query *q = &queries[names++];
		unsigned char *at = q->octets + 14;

		line[strcspn(line, " \n")] = 0;
		q->octets[4] = 1; /* RD */
		q->octets[7] = 1;
		for (char *label = strtok(line, "."); label; label = strtok(NULL, ".")) {
			*at = strlen(label);
			memcpy(at + 1, label, *at);
			at += *at + 1;
		}
		memcpy(at, "\0\0\1\0\1", 5);
		q->length = at + 5 - q->octets;
		q->octets[0] = (q->length - 2) >> 8;
		q->octets[1] = q->length - 2;
	}
	fclose(file);
	if (!names)
		fail("no names");
}

/* As many queries as may be under way, in one write. */
static void ask(struct connection *c)
{
	static unsigned char out[65536];
	size_t length = 0;

	while (c->sent < each && c->sent - c->heard < under_way && length + sizeof(queries->octets) <= sizeof(out)) {
		struct query *q = &queries[next++ % names];

		memcpy(out + length, q->octets, q->length);
		length += q->length;
		c->sent++;
	}
	if (length && write(c->fd, out, length) != (ssize_t)length)
		fail("write");
}

static void open_anew(struct connection *c)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
	struct linger linger = { .l_onoff = 1 };
	int one = 1;

	if (c->fd > 0)
		close(c->fd);
	c->sent = c->heard = 0;
	c->have = 0;
	c->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof(server)) < 0)
		fail("connect");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
	ask(c);
}

static void hear(struct connection *c)
{
	ssize_t got = read(c->fd, c->in + c->have, sizeof(c->in) - c->have);
	size_t at = 0;

	if (got <= 0) {
		failed += c->sent - c->heard;
		open_anew(c);
		return;
	}
	c->have += got;
	while (c->have - at >= 2) {
		size_t length = c->in[at] << 8 | c->in[at + 1];

		if (c->have - at < length + 2)
			break;
		if (length < 12 || c->in[at + 5] & 15)
			failed++;
		else
			answered++;
		c->heard++;
		at += length + 2;
	}
	memmove(c->in, c->in + at, c->have - at);
	c->have -= at;
	if (c->heard >= each)
		open_anew(c);
	else
		ask(c);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	int count = argc == 7 ? atoi(argv[4]) : 0;

	if (count < 1 || count > CONNECTIONS_MAX || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
		return fprintf(stderr, "usage: dnstcp SERVER NAMES MILLISECONDS CONNECTIONS UNDER-WAY PER-CONNECTION\n"), 2;
	server.sin_port = htons(53);
	under_way = atoi(argv[5]);
	each = atoi(argv[6]);
	read_names(argv[2]);
	poll_fd = epoll_create1(0);
	double begin = now(), end = begin + atoi(argv[3]) / 1e3;
	for (int i = 0; i < count; i++)
		open_anew(&connections[i]);
	while (now() < end) {
		struct epoll_event events[CONNECTIONS_MAX];
		int ready = epoll_wait(poll_fd, events, CONNECTIONS_MAX, 100);

		for (int i = 0; i < ready; i++)
			hear(events[i].data.ptr);
	}
	printf("qps %.0f failed %ld\n", answered / (now() - begin), failed);
	return 0;
}
