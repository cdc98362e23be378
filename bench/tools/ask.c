/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many guests that ask for names, each name once: makes taps g0, g1, …, and writes into them the frames of DNS questions.
 *
 *   ask TAPS
 *
 * Prints "ready" when the taps are there; then reads a number from each line of its input, asks that many more names (nN.example.net,
 * one guest after the other), waits for every answer and prints "answered A refused R": with an address, and without one. A question
 * without an answer for two seconds is asked again. Guest N has the address 10.9.N.2 and asks 8.8.8.8.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TAPS_MAX 200
#define WINDOW 16 /* questions under way of each guest */
#define PORT 20000

static struct guest {
	int tap;
	long asked[WINDOW]; /* number of the name; -1: this place is free */
} guests[TAPS_MAX];
static long next, last, answered, refused, open_questions;
static int taps;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int tap_open(int n)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

	snprintf(request.ifr_name, sizeof(request.ifr_name), "g%d", n);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0)
		fail("tap");
	return fd;
}

static unsigned short checksum(const void *data, int words)
{
	const unsigned short *at = data;
	unsigned sum = 0;

	while (words--)
		sum += *at++;
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static void send_question(int n, int place)
{
	static const unsigned char suffix[] = "\7example\3net\0\0\1\0\1";
	unsigned char frame[128] = { 0x02, 0xfc, 0, 0, 1, 1, 0x02, 0xfc, 0, 9, n, 2, 0x08, 0x00 };
	struct iphdr *ip = (struct iphdr *)(frame + ETH_HLEN);
	struct udphdr *udp = (struct udphdr *)(ip + 1);
	unsigned char *dns = (unsigned char *)(udp + 1);
	long number = guests[n].asked[place];
	int label = sprintf((char *)dns + 13, "n%ld", number), length = 13 + label;

	dns[0] = number >> 8;
	dns[1] = number;
	dns[2] = 1; /* RD */
	dns[5] = 1; /* one question */
	dns[12] = label;
	memcpy(dns + length, suffix, sizeof(suffix) - 1);
	length += sizeof(suffix) - 1;
	*ip = (struct iphdr){ .version = 4, .ihl = 5, .tot_len = htons(sizeof(*ip) + sizeof(*udp) + length), .ttl = 64, .protocol = IPPROTO_UDP,
			      .saddr = htonl(10u << 24 | 9 << 16 | n << 8 | 2), .daddr = htonl(0x08080808) };
	ip->check = checksum(ip, 10);
	*udp = (struct udphdr){ .source = htons(PORT + place), .dest = htons(53), .len = htons(sizeof(*udp) + length) };
	if (write(guests[n].tap, frame, dns + length - frame) < 0)
		fail("write");
}

static void fill(int n, int place)
{
	guests[n].asked[place] = -1;
	if (next == last)
		return;
	guests[n].asked[place] = next++;
	open_questions++;
	send_question(n, place);
}

/* Every frame that waits in a guest's tap. */
static void hear(int n)
{
	unsigned char frame[2048];
	ssize_t length;

	while ((length = read(guests[n].tap, frame, sizeof(frame))) > 0) {
		if (length < 54 || frame[12] != 8 || frame[13] || frame[23] != IPPROTO_UDP)
			continue;
		int place = (frame[36] << 8 | frame[37]) - PORT;
		if (place < 0 || place >= WINDOW || guests[n].asked[place] < 0 ||
		    (frame[42] << 8 | frame[43]) != (guests[n].asked[place] & 0xffff))
			continue;
		if ((frame[45] & 15) == 0 && (frame[48] << 8 | frame[49]) > 0)
			answered++;
		else
			refused++;
		open_questions--;
		fill(n, place);
	}
}

int main(int argc, char **argv)
{
	int epoll = epoll_create1(0);
	struct epoll_event events[TAPS_MAX];
	char line[32];

	taps = argc == 2 ? atoi(argv[1]) : 0;
	if (taps < 1 || taps > TAPS_MAX)
		return fprintf(stderr, "usage: ask TAPS (1 to %d)\n", TAPS_MAX), 2;
	for (int n = 0; n < taps; n++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = n };

		guests[n].tap = tap_open(n);
		epoll_ctl(epoll, EPOLL_CTL_ADD, guests[n].tap, &event);
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		last = next + atol(line);
		answered = refused = 0;
		for (int place = 0; place < WINDOW; place++)
			for (int n = 0; n < taps; n++)
				fill(n, place);
		while (open_questions > 0) {
			int count = epoll_wait(epoll, events, TAPS_MAX, 2000);

			for (int i = 0; i < count; i++)
				hear(events[i].data.u32);
			for (int n = 0; count == 0 && n < taps; n++)
				for (int place = 0; place < WINDOW; place++)
					if (guests[n].asked[place] >= 0)
						send_question(n, place);
		}
		printf("answered %ld refused %ld\n", answered, refused);
		fflush(stdout);
	}
	return 0;
}
