/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast upstream of the DNS benchmarks: answers every A question with one address, every other with no data.
 *
 *   answer ADDRESS [PORT]
 *
 * Holds always: the same name has the same public address in 23.0.0.0/8; TTL one hour. Answers over
 * UDP only, batches of them with recvmmsg(2) and sendmmsg(2), so that it is never what a resolver in front of it waits for.
 * Prints "ready".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 64
#define CELL 1024
#define ANSWER 16 /* pointer, type, class, TTL, length, address */

static unsigned char cells[BATCH][CELL];

/* Turns the query in a cell into its answer; 0: not a question. */
static size_t answer(unsigned char *m, size_t length)
{
	size_t at = 12;
	uint32_t hash = 2166136261u;

	if (length < 17 || m[2] & 0x80 || m[4] || m[5] != 1)
		return 0;
	while (at < length && m[at]) {
		size_t end = at + m[at] + 1;

		if (m[at] > 63 || end >= length)
			return 0;
		for (; at < end; at++)
			hash = (hash ^ (m[at] | 0x20)) * 16777619u;
	}
	if (at + 5 > length)
		return 0;
	int is_a = m[at + 1] == 0 && m[at + 2] == 1;
	at += 5;
	/* whatever stood behind the question (an OPT record) goes */
	m[2] = 0x84 | (m[2] & 1);
	m[3] = 0x80;
	m[6] = 0;
	m[7] = is_a;
	memset(m + 8, 0, 4);
	if (!is_a)
		return at;
	const unsigned char record[ANSWER] = { 0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 23, hash >> 16, hash >> 8, hash | 1 };

	memcpy(m + at, record, ANSWER);
	return at + ANSWER;
}

int main(int argc, char **argv)
{
	struct sockaddr_in own = { .sin_family = AF_INET }, peers[BATCH];
	struct iovec in[BATCH], out[BATCH];
	struct mmsghdr received[BATCH], sent[BATCH];
	int room = 8 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);

	own.sin_port = htons(argc > 2 ? atoi(argv[2]) : 53);
	if (argc < 2 || inet_pton(AF_INET, argv[1], &own.sin_addr) != 1) {
		fprintf(stderr, "usage: answer ADDRESS [PORT]\n");
		return 2;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof(own)) < 0) {
		perror("bind");
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int count, n = 0, done = 0;

		for (int i = 0; i < BATCH; i++) {
			in[i] = (struct iovec){ cells[i], CELL };
			received[i].msg_hdr = (struct msghdr){ .msg_name = &peers[i], .msg_namelen = sizeof(peers[i]), .msg_iov = &in[i], .msg_iovlen = 1 };
		}
		count = recvmmsg(fd, received, BATCH, MSG_WAITFORONE, NULL);
		if (count < 0 && errno != EINTR) {
			perror("recvmmsg");
			return 1;
		}
		for (int i = 0; i < count; i++) {
			/* room for the answer behind the question */
			size_t length = received[i].msg_len + ANSWER <= CELL ? answer(cells[i], received[i].msg_len) : 0;

			if (!length)
				continue;
			out[n] = (struct iovec){ cells[i], length };
			sent[n].msg_hdr = (struct msghdr){ .msg_name = &peers[i], .msg_namelen = sizeof(peers[i]), .msg_iov = &out[n], .msg_iovlen = 1 };
			n++;
		}
		while (done < n) {
			int wrote = sendmmsg(fd, sent + done, n - done, 0);

			done += wrote > 0 ? wrote : 1;
		}
	}
}
