/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packet writer on many taps: keeps PREFIX0 … PREFIX(COUNT-1) as a VMM would, and writes frames to each in turn without end.
 * At times it deletes a tap and makes it again under the same name, and sends at once.
 *
 *   storm PREFIX COUNT CHURN          CHURN: of a thousand rounds, how many make a tap anew; 0: none
 *
 * Frames: from the guest address of tap i (see below) with its MAC to forbidden and allowed destinations, UDP, the
 * destination port 9, the payload "storm-deny" or "storm-pass". Tap i has the subnet 10.100.0.0/14 + 4 i, of which .1 is the
 * host's and .2 the guest's.
 * Prints "ready" when all taps are there, "made NAME" for each that was made anew, and at SIGTERM "sent N".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include "tap.h"

static volatile sig_atomic_t ended;

static void end(int number)
{
	(void)number;
	ended = 1;
}

static const char *const forbidden[] = { "169.254.169.254", "192.168.50.10", "10.0.0.1", "240.1.2.3" };

static unsigned sum(const unsigned char *at, int length)
{
	unsigned total = 0;

	for (int i = 0; i < length; i += 2)
		total += (unsigned)(at[i] << 8 | at[i + 1]);
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return ~total & 0xffff;
}

/* One frame of tap i, to the destination. */
static size_t frame(unsigned char *at, unsigned i, const unsigned char *gateway, uint32_t to, const char *payload, unsigned port)
{
	size_t data = strlen(payload), total = 20 + 8 + data;
	uint32_t from = htonl(0x0a640000u + 4 * i + 2);
	unsigned check;

	memcpy(at, gateway, 6);
	memcpy(at + 6, "\x02\xfd\x00\x00", 4);
	at[10] = (unsigned char)(i >> 8);
	at[11] = (unsigned char)i;
	at[12] = 8;
	at[13] = 0;
	unsigned char *ip = at + 14;
	memset(ip, 0, 28);
	ip[0] = 0x45;
	ip[2] = (unsigned char)(total >> 8);
	ip[3] = (unsigned char)total;
	ip[8] = 64;
	ip[9] = 17;
	memcpy(ip + 12, &from, 4);
	memcpy(ip + 16, &to, 4);
	check = sum(ip, 20);
	ip[10] = (unsigned char)(check >> 8);
	ip[11] = (unsigned char)check;
	ip[20] = (unsigned char)(port >> 8);
	ip[21] = (unsigned char)port;
	ip[23] = 9;
	ip[24] = (unsigned char)((8 + data) >> 8);
	ip[25] = (unsigned char)(8 + data);
	memcpy(ip + 28, payload, data);
	return 14 + total;
}

int main(int argc, char **argv)
{
	unsigned count = argc == 4 ? (unsigned)atoi(argv[2]) : 0, churn = argc == 4 ? (unsigned)atoi(argv[3]) : 0, round = 0;
	unsigned long sent = 0;
	unsigned char out[256] = { 0 };
	char name[32];
	int *taps;

	if (count < 1 || count > 4000) {
		fprintf(stderr, "usage: storm PREFIX COUNT CHURN\n");
		return 2;
	}
	taps = calloc(count, sizeof(*taps));
	if (!taps)
		die("calloc");
	signal(SIGTERM, end);
	for (unsigned i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "%s%u", argv[1], i);
		taps[i] = tap_open(name, 0);
	}
	printf("ready\n");
	fflush(stdout);
	while (!ended) {
		for (unsigned i = 0; i < count && !ended; i++) {
			/* the tap.s own MAC, which the test sets */
			const unsigned char gateway[6] = { 0x02, 0xfd, 0xff, 0, (unsigned char)(i >> 8), (unsigned char)i };

			if (churn && (unsigned)(random() % 1000) < churn) {
				snprintf(name, sizeof(name), "%s%u", argv[1], i);
				close(taps[i]);
				taps[i] = tap_open(name, 0);
				printf("made %s\n", name);
				fflush(stdout);
			}
			for (size_t k = 0; k < sizeof(forbidden) / sizeof(forbidden[0]); k++)
				sent += write(taps[i], out, frame(out, i, gateway, inet_addr(forbidden[k]), "storm-deny", 1024 + round % 50000)) > 0;
			sent += write(taps[i], out, frame(out, i, gateway, inet_addr("93.184.216.99"), "storm-pass", 1024 + round % 64)) > 0;
		}
		round++;
		usleep(2000);
	}
	printf("sent %lu\n", sent);
	return 0;
}
