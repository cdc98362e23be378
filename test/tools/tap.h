/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test tools share: opening a tap, hexadecimal lines, and dying with a message.
 *
 * Holds always: every failure ends the program with a line on stderr. It sets no address and no link state: the world does.
 */
#ifndef TEST_TOOLS_TAP_H
#define TEST_TOOLS_TAP_H

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FRAME_MAX (128 * 1024) /* a 64 KiB GSO frame with its headers and virtio header, and room */
#define VNET_HEADER 10         /* struct virtio_net_hdr without num_buffers */

static inline void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/*
 * Opens (and makes, where there is none) a tap in the calling process's network namespace. multi: one queue of several, each
 * a descriptor of its own. ifindex: the number that a new one is to have; 0: the kernel's choice.
 */
static inline int tap_open_as(const char *name, int vnet, int multi, unsigned ifindex)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | (multi ? IFF_MULTI_QUEUE : 0) };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("open /dev/net/tun");
	if (vnet)
		request.ifr_flags |= IFF_VNET_HDR;
	if (strlen(name) >= IFNAMSIZ) {
		errno = ENAMETOOLONG;
		die(name);
	}
	strcpy(request.ifr_name, name);
	if (ifindex && ioctl(fd, TUNSETIFINDEX, &ifindex) < 0)
		die("TUNSETIFINDEX");
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		die("TUNSETIFF");
	if (vnet && ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
		die("TUNSETOFFLOAD");
	return fd;
}

static inline int tap_open(const char *name, int vnet) { return tap_open_as(name, vnet, 0, 0); }

static inline int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Reads hexadecimal digits up to the first other character; returns octets written, or -1 when odd or too long. */
static inline long hex_read(const char *text, unsigned char *out, size_t room, const char **end)
{
	size_t length = 0;

	while (hex_digit(text[0]) >= 0) {
		if (hex_digit(text[1]) < 0 || length == room)
			return -1;
		out[length++] = (unsigned char)(hex_digit(text[0]) << 4 | hex_digit(text[1]));
		text += 2;
	}
	if (end)
		*end = text;
	return (long)length;
}

/* out must hold 2 * length + 1 characters. */
static inline char *hex_write(const unsigned char *data, size_t length, char *out)
{
	static const char digits[] = "0123456789abcdef";
	size_t i;

	for (i = 0; i < length; i++) {
		*out++ = digits[data[i] >> 4];
		*out++ = digits[data[i] & 15];
	}
	*out = 0;
	return out;
}

#endif
