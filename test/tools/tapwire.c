/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wire between two taps, the second in another network namespace, so that a namespace behaves like a virtual machine
 * behind a real tap: what its kernel sends arrives at the first tap's TC ingress hook with the virtio header (partial
 * checksum, segmentation) that its kernel wrote, as a VMM would deliver it.
 *
 *   tapwire TAP NETNS GUEST-TAP      NETNS: a name under /run/netns or a path
 *
 * Prints "ready" when both taps are there. Ends by signal, or when a tap goes away. It never looks into a frame.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include "tap.h"

struct way {
	int from, to;
};

static void *shuttle(void *argument)
{
	const struct way *way = argument;
	unsigned char *frame = malloc(FRAME_MAX);

	if (!frame)
		die("malloc");
	for (;;) {
		ssize_t length = read(way->from, frame, FRAME_MAX);

		if (length < 0) {
			struct pollfd wait = { .fd = way->from, .events = POLLIN };

			if (errno == EBADFD || errno == ENODEV)
				exit(0);
			/* A tap that is down refuses reads: wait until it is up. */
			poll(&wait, 1, 20);
			continue;
		}
		/* A frame that the other side does not take (down, queue full) is lost, as on a wire. */
		if (write(way->to, frame, (size_t)length) < 0 && errno == EBADFD)
			exit(0);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	char path[256];
	struct way out, in;
	pthread_t thread;
	int ns, near, far;

	if (argc != 4) {
		fprintf(stderr, "usage: tapwire TAP NETNS GUEST-TAP\n");
		return 2;
	}
	near = tap_open(argv[1], 1);
	snprintf(path, sizeof(path), "%s%s", strchr(argv[2], '/') ? "" : "/run/netns/", argv[2]);
	ns = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0)
		die(path);
	if (setns(ns, CLONE_NEWNET) < 0)
		die("setns");
	far = tap_open(argv[3], 1);
	printf("ready\n");
	fflush(stdout);

	out = (struct way){ .from = far, .to = near };
	in = (struct way){ .from = near, .to = far };
	if (pthread_create(&thread, NULL, shuttle, &out))
		die("pthread_create");
	shuttle(&in);
	return 0;
}
