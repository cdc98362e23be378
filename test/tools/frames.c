/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames by hand: writes frames given as hexadecimal lines and prints those that arrive.
 *
 *   frames TAP [--vnet] [--queues N] [--ifindex N]   owns the tap, as a VMM does (makes it where there is none). With several
 *                                 queues each frame goes to the next one
 *   frames --packet DEVICE        a packet socket on a device that is there, for use inside a guest's namespace
 *
 * Lines on standard input:
 *   HEX                           one frame (with --vnet: without a virtio header, a zero one goes before it)
 *   vnet:HEX HEX                  virtio header (10 octets), frame; needs --vnet
 *   repeat COUNT LINE             the same frame many times, answered once
 *   sync                          nothing; its answer says that all lines before it are done
 * Answers on standard output, in order: "w" (written; repeat: "w WRITTEN"), "e NUMBER" (errno of the write), "synced".
 * Frames received: "r HEX", or "r vnet:HEX HEX". The first line is "ready". Ends at end of input.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include "tap.h"

#define QUEUES_MAX 8

static int device, vnet, is_packet, queues = 1;
static int queue[QUEUES_MAX];

static int packet_open(const char *name)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));

	if (fd < 0)
		die("socket");
	at.sll_ifindex = (int)if_nametoindex(name);
	if (!at.sll_ifindex)
		die(name);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		die("bind");
	return fd;
}

static void *receive(void *of)
{
	int device = *(int *)of;
	unsigned char *frame = malloc(FRAME_MAX);
	char *line = malloc(2 * FRAME_MAX + 32);
	size_t head = vnet ? VNET_HEADER : 0;

	if (!frame || !line)
		die("malloc");
	for (;;) {
		struct sockaddr_ll from;
		socklen_t size = sizeof(from);
		ssize_t length = is_packet ? recvfrom(device, frame, FRAME_MAX, 0, (struct sockaddr *)&from, &size)
					   : read(device, frame, FRAME_MAX);
		char *at = line;

		if (length < 0) {
			struct pollfd wait = { .fd = device, .events = POLLIN };

			if (errno == EBADFD || errno == ENODEV)
				exit(0);
			poll(&wait, 1, 20);
			continue;
		}
		if (is_packet && from.sll_pkttype == PACKET_OUTGOING)
			continue;
		if ((size_t)length < head)
			continue;
		at = stpcpy(at, "r ");
		if (vnet) {
			at = hex_write(frame, head, stpcpy(at, "vnet:"));
			*at++ = ' ';
		}
		at = hex_write(frame + head, (size_t)length - head, at);
		*at++ = '\n';
		*at = 0;
		fputs(line, stdout); /* one call: lines of two threads do not mix */
		fflush(stdout);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned char *frame = malloc(FRAME_MAX);
	pthread_t thread;
	char *line = NULL;
	size_t room = 0;

	unsigned ifindex = 0;
	int bad = argc < 2, turn = 0;

	is_packet = argc == 3 && !strcmp(argv[1], "--packet");
	for (int i = 2; i < argc && !is_packet; i++) {
		if (!strcmp(argv[i], "--vnet"))
			vnet = 1;
		else if (!strcmp(argv[i], "--queues") && i + 1 < argc)
			queues = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--ifindex") && i + 1 < argc)
			ifindex = (unsigned)atoi(argv[++i]);
		else
			bad = 1;
	}
	if (bad || queues < 1 || queues > QUEUES_MAX) {
		fprintf(stderr, "usage: frames TAP [--vnet] [--queues N] [--ifindex N] | --packet DEVICE\n");
		return 2;
	}
	for (int i = 0; i < queues; i++)
		queue[i] = is_packet ? packet_open(argv[2]) : tap_open_as(argv[1], vnet, queues > 1, i ? 0 : ifindex);
	printf("ready\n");
	fflush(stdout);
	for (int i = 0; i < queues; i++)
		if (!frame || pthread_create(&thread, NULL, receive, &queue[i]))
			die("pthread_create");

	while (getline(&line, &room, stdin) > 0) {
		const char *at = line;
		unsigned long count = 0, i;
		size_t head = vnet ? VNET_HEADER : 0;
		long written = 0, length;
		int error = 0;

		if (!strncmp(at, "sync", 4)) {
			printf("synced\n");
			fflush(stdout);
			continue;
		}
		if (!strncmp(at, "repeat ", 7)) {
			char *end;

			count = strtoul(at + 7, &end, 10);
			at = end + (*end == ' ');
		}
		memset(frame, 0, head);
		if (!strncmp(at, "vnet:", 5)) {
			if (!vnet || hex_read(at + 5, frame, VNET_HEADER, &at) != VNET_HEADER) {
				fprintf(stderr, "bad virtio header\n");
				return 1;
			}
			at += *at == ' ';
		}
		length = hex_read(at, frame + head, FRAME_MAX - head, NULL);
		if (length < 0) {
			fprintf(stderr, "bad hexadecimal\n");
			return 1;
		}
		device = queue[turn++ % queues];
		for (i = 0; i < (count ? count : 1); i++) {
			if (write(device, frame, head + (size_t)length) < 0)
				error = errno;
			else
				written++;
		}
		if (count)
			printf("w %ld\n", written);
		else if (error)
			printf("e %d\n", error);
		else
			printf("w\n");
		fflush(stdout);
	}
	return 0;
}
