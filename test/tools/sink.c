/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sink: shows every frame that arrives at a device, so that a test can prove what left the other end of it.
 *
 *   sink DEVICE|any [--count]     any: all devices of the namespace but loopback
 *
 * Prints "ready", then each frame as a hexadecimal line, VLAN tags put back where the kernel had taken them out. With
 * --count it prints no frames but, for each line on standard input, "count N". Frames sent by this namespace itself are
 * left out. "lost N" is printed before a frame where the kernel had to drop some for want of room: a test must not
 * trust its silence then.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sys/socket.h>
#include "tap.h"

#ifndef TP_STATUS_VLAN_TPID_VALID
#define TP_STATUS_VLAN_TPID_VALID (1 << 6)
#endif

int main(int argc, char **argv)
{
	unsigned char *frame = malloc(FRAME_MAX + 4);
	char *line = malloc(2 * FRAME_MAX + 16);
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int count_only = argc == 3 && !strcmp(argv[2], "--count");
	int fd, on = 1, room = 64 * 1024 * 1024;
	unsigned long count = 0;

	if (argc != 2 && !count_only) {
		fprintf(stderr, "usage: sink DEVICE|any [--count]\n");
		return 2;
	}
	if (!frame || !line)
		die("malloc");
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	at.sll_ifindex = (int)if_nametoindex(argv[1]);
	if (!at.sll_ifindex && strcmp(argv[1], "any"))
		die(argv[1]);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) < 0 ||
	    setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof(on)) < 0)
		die("setsockopt");
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		die("bind");
	printf("ready\n");
	fflush(stdout);

	for (;;) {
		struct pollfd wait[2] = { { .fd = fd, .events = POLLIN }, { .fd = 0, .events = POLLIN } };
		char control[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
		struct sockaddr_ll from;
		struct iovec part = { .iov_base = frame + 4, .iov_len = FRAME_MAX };
		struct msghdr message = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &part, .msg_iovlen = 1,
					  .msg_control = control, .msg_controllen = sizeof(control) };
		struct cmsghdr *item;
		unsigned char *start = frame + 4;
		struct tpacket_stats stats;
		socklen_t size = sizeof(stats);
		ssize_t length;

		if (poll(wait, 2, -1) < 0)
			continue;
		if (!(wait[0].revents & POLLIN)) {
			char asked[64];

			/* Standard input is looked at only when no frame waits: the answer counts all that arrived before. */
			if (wait[1].revents && read(0, asked, sizeof(asked)) <= 0)
				return 0;
			if (wait[1].revents) {
				printf("count %lu\n", count);
				fflush(stdout);
			}
			continue;
		}
		length = recvmsg(fd, &message, 0);
		if (length < 0)
			continue;
		if (from.sll_pkttype == PACKET_OUTGOING || from.sll_hatype == ARPHRD_LOOPBACK)
			continue;
		if (!getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size) && stats.tp_drops)
			printf("lost %u\n", stats.tp_drops);
		count++;
		if (count_only)
			continue;
		for (item = CMSG_FIRSTHDR(&message); item; item = CMSG_NXTHDR(&message, item)) {
			struct tpacket_auxdata aux;
			unsigned int tpid = ETHERTYPE_VLAN;

			if (item->cmsg_level != SOL_PACKET || item->cmsg_type != PACKET_AUXDATA)
				continue;
			memcpy(&aux, CMSG_DATA(item), sizeof(aux));
			if (!(aux.tp_status & TP_STATUS_VLAN_VALID) || length < 12)
				continue;
			if (aux.tp_status & TP_STATUS_VLAN_TPID_VALID)
				tpid = aux.tp_vlan_tpid;
			memmove(frame, frame + 4, 12);
			frame[12] = (unsigned char)(tpid >> 8);
			frame[13] = (unsigned char)tpid;
			frame[14] = (unsigned char)(aux.tp_vlan_tci >> 8);
			frame[15] = (unsigned char)aux.tp_vlan_tci;
			start = frame;
			length += 4;
		}
		*hex_write(start, (size_t)length, line) = 0;
		puts(line);
		fflush(stdout);
	}
}
