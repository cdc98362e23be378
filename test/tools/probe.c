/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest tries: one attempt per call, one JSON line as the answer. Runs in the test VM and in a guest's namespace.
 *
 *   probe dns udp|tcp RESOLVER NAME TYPE          a query with EDNS (1232 octets); TYPE: A, AAAA, TXT, ..., or a number
 *   probe http ADDRESS PORT HOST PATH             GET over HTTP/1.1
 *   probe fetch RESOLVER NAME PORT PATH A|AAAA    look the name up over UDP, then http to each address in turn
 *   probe tcp ADDRESS PORT                        connect
 *   probe udp ADDRESS PORT TEXT                   send TEXT, wait for an answer
 *   probe ping ADDRESS                            ICMP or ICMPv6 echo
 *   probe vlan DEVICE GATEWAY ADDRESS PORT TPID[,TPID...]   TCP SYN in a frame with VLAN tags (id 0), wait for SYN-ACK
 *
 * The environment variable PROBE_TIMEOUT_MS (default 1500) bounds each wait. The line is
 * {"ok": an answer came that means success, "saw": text for people, ...}; the exit status is 0 also when nothing came.
 * Static, and without getaddrinfo: it asks the resolver it was told to ask, and nobody else. Addresses are numeric.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int timeout_ms = 1500;

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- output ---------------------------------------------------------------------------------------------------- */

static char extra[8192]; /* further JSON members, each with a leading comma */

static void json_string(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c > 0x7e)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static void finish(int ok, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
static void finish(int ok, const char *format, ...)
{
	char saw[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(saw, sizeof(saw), format, arguments);
	va_end(arguments);
	printf("{\"ok\":%s,\"saw\":", ok ? "true" : "false");
	json_string(stdout, saw);
	printf("%s}\n", extra);
	fflush(stdout);
	exit(0);
}

static const char *error_text(int error)
{
	switch (error) {
	case ETIMEDOUT: return "no answer";
	case ECONNREFUSED: return "refused";
	case ECONNRESET: return "reset";
	case EHOSTUNREACH: return "host unreachable";
	case ENETUNREACH: return "network unreachable";
	case EACCES: case EPERM: return "prohibited";
	default: return strerror(error);
	}
}

/* ---- addresses and sockets ------------------------------------------------------------------------------------- */

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static socklen_t address_parse(const char *text, int port, union address *out)
{
	char copy[INET6_ADDRSTRLEN + IFNAMSIZ + 2];
	char *zone;

	memset(out, 0, sizeof(*out));
	snprintf(copy, sizeof(copy), "%s", text);
	zone = strchr(copy, '%');
	if (zone)
		*zone++ = 0;
	if (inet_pton(AF_INET, copy, &out->v4.sin_addr) == 1) {
		out->v4.sin_family = AF_INET;
		out->v4.sin_port = htons((uint16_t)port);
		return sizeof(out->v4);
	}
	if (inet_pton(AF_INET6, copy, &out->v6.sin6_addr) == 1) {
		out->v6.sin6_family = AF_INET6;
		out->v6.sin6_port = htons((uint16_t)port);
		if (zone)
			out->v6.sin6_scope_id = if_nametoindex(zone);
		return sizeof(out->v6);
	}
	fprintf(stderr, "not an address: %s\n", text);
	exit(2);
}

static int wait_for(int fd, short events, long deadline)
{
	struct pollfd wait = { .fd = fd, .events = events };
	long left = deadline - now_ms();

	if (left <= 0)
		return 0;
	return poll(&wait, 1, (int)left) > 0;
}

/* A connected socket, or -1 with errno (ETIMEDOUT when nothing came). */
static int dial(int type, const char *address, int port, long deadline)
{
	union address to;
	socklen_t length = address_parse(address, port, &to);
	int error = 0, fd = socket(to.any.sa_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof(error);

	if (fd < 0)
		return -1;
	if (!connect(fd, &to.any, length))
		return fd;
	if (errno == EINPROGRESS) {
		if (!wait_for(fd, POLLOUT, deadline))
			error = ETIMEDOUT;
		else
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (!error)
			return fd;
		errno = error;
	}
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

static int send_all(int fd, const void *data, size_t length, long deadline)
{
	const char *at = data;

	while (length) {
		ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN && wait_for(fd, POLLOUT, deadline))
			continue;
		if (sent < 0)
			return -1;
		at += sent;
		length -= (size_t)sent;
	}
	return 0;
}

/* One read: octets, 0 at the end, or -1 with errno. */
static ssize_t receive(int fd, void *data, size_t room, long deadline)
{
	if (!wait_for(fd, POLLIN, deadline)) {
		errno = ETIMEDOUT;
		return -1;
	}
	return recv(fd, data, room, 0);
}

/* ---- DNS (RFC 1035) -------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int number;
} types[] = { { "A", 1 }, { "NS", 2 }, { "CNAME", 5 }, { "SOA", 6 }, { "PTR", 12 }, { "MX", 15 }, { "TXT", 16 }, { "AAAA", 28 },
	      { "SRV", 33 }, { "SVCB", 64 }, { "HTTPS", 65 }, { "ANY", 255 } };

static int type_number(const char *text)
{
	size_t i;

	for (i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (!strcasecmp(text, types[i].name))
			return types[i].number;
	return atoi(text);
}

static const char *rcode_text(int rcode)
{
	static const char *const names[] = { "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED" };
	static char other[16];

	if (rcode >= 0 && rcode < 6)
		return names[rcode];
	snprintf(other, sizeof(other), "RCODE%d", rcode);
	return other;
}

/* Reads a name (RFC 1035 section 4.1.4) as text; returns the offset after it, or 0. */
static size_t name_read(const unsigned char *message, size_t length, size_t at, char *out, size_t room)
{
	size_t after = 0, used = 0;
	int hops = 0;

	for (;;) {
		unsigned int octet;

		if (at >= length)
			return 0;
		octet = message[at];
		if (octet >= 192) {
			if (at + 1 >= length || ++hops > 32)
				return 0;
			if (!after)
				after = at + 2;
			at = (octet & 63) << 8 | message[at + 1];
			continue;
		}
		if (octet > 63 || at + 1 + octet > length || used + octet + 2 > room)
			return 0;
		at++;
		if (!octet)
			break;
		memcpy(out + used, message + at, octet);
		used += octet;
		out[used++] = '.';
		at += octet;
	}
	out[used ? used - 1 : 0] = 0;
	return after ? after : at;
}

struct dns_result {
	int rcode, truncated, ede, count, addresses;
	char ede_text[256];
	char list[16][64];    /* addresses */
	char shown[2048];     /* all answers as text */
};

static unsigned int get16(const unsigned char *at)
{
	return (unsigned int)at[0] << 8 | at[1];
}

static int dns_parse(const unsigned char *message, size_t length, struct dns_result *result)
{
	unsigned int counts[4], section, i;
	size_t at = 12;
	char name[512];

	memset(result, 0, sizeof(*result));
	result->ede = -1;
	if (length < 12)
		return -1;
	result->rcode = message[3] & 15;
	result->truncated = (message[2] & 2) != 0;
	for (i = 0; i < 4; i++)
		counts[i] = get16(message + 4 + 2 * i);
	for (i = 0; i < counts[0]; i++) {
		at = name_read(message, length, at, name, sizeof(name));
		if (!at || (at += 4) > length)
			return -1;
	}
	for (section = 1; section < 4; section++) {
		for (i = 0; i < counts[section]; i++) {
			unsigned int type, size;
			const unsigned char *data;
			char text[600] = "";

			at = name_read(message, length, at, name, sizeof(name));
			if (!at || at + 10 > length)
				return -1;
			type = get16(message + at);
			size = get16(message + at + 8);
			data = message + at + 10;
			if (at + 10 + size > length)
				return -1;
			if (type == 41) { /* OPT: look for an extended DNS error (RFC 8914) */
				size_t option = 0;

				while (option + 4 <= size) {
					unsigned int code = get16(data + option), octets = get16(data + option + 2);

					if (option + 4 + octets > size)
						return -1;
					if (code == 15 && octets >= 2) {
						size_t words = octets - 2 < sizeof(result->ede_text) - 1 ? octets - 2 : sizeof(result->ede_text) - 1;

						result->ede = (int)get16(data + option + 4);
						memcpy(result->ede_text, data + option + 6, words);
						result->ede_text[words] = 0;
					}
					option += 4 + octets;
				}
			} else if (section == 1) {
				if (type == 1 && size == 4)
					inet_ntop(AF_INET, data, text, sizeof(text));
				else if (type == 28 && size == 16)
					inet_ntop(AF_INET6, data, text, sizeof(text));
				else if (type == 5 || type == 12)
					name_read(message, length, at + 10, text, sizeof(text));
				else if (type == 16 && size && data[0] < size)
					snprintf(text, sizeof(text), "\"%.*s\"", data[0], data + 1);
				else
					snprintf(text, sizeof(text), "TYPE%u", type);
				if ((type == 1 || type == 28) && result->addresses < 16)
					snprintf(result->list[result->addresses++], sizeof(result->list[0]), "%s", text);
				if (strlen(result->shown) + strlen(text) + 3 < sizeof(result->shown)) {
					if (result->count)
						strcat(result->shown, ", ");
					strcat(result->shown, text);
				}
				result->count++;
			}
			at += 10 + size;
		}
	}
	return 0;
}

/* Asks once; 0, or -1 with errno. EBADMSG: the answer cannot be read or is not for this question. */
static int dns_ask(int tcp, const char *resolver, const char *name, int type, struct dns_result *result)
{
	long deadline = now_ms() + timeout_ms;
	unsigned char query[600], answer[65537];
	size_t length = 2 + 12;
	const char *label = name;
	unsigned int id;
	int fd;
	ssize_t got;
	static const unsigned char opt[] = { 0, 0, 41, 1232 >> 8, 1232 & 255, 0, 0, 0, 0, 0, 0 };

	srandom((unsigned int)(now_ms() ^ getpid()));
	id = (unsigned int)random() & 0xffff;
	memset(query, 0, sizeof(query));
	query[2] = (unsigned char)(id >> 8);
	query[3] = (unsigned char)id;
	query[4] = 1; /* RD */
	query[7] = 1; /* one question */
	query[13] = 1; /* one additional record: OPT */
	while (*label && strcmp(label, ".")) {
		size_t octets = strcspn(label, ".");

		if (!octets || octets > 63 || length + octets + 32 > sizeof(query)) {
			fprintf(stderr, "not a name: %s\n", name);
			exit(2);
		}
		query[length++] = (unsigned char)octets;
		memcpy(query + length, label, octets);
		length += octets;
		label += octets + (label[octets] == '.');
	}
	query[length++] = 0;
	query[length++] = (unsigned char)(type >> 8);
	query[length++] = (unsigned char)type;
	query[length++] = 0;
	query[length++] = 1;
	memcpy(query + length, opt, sizeof(opt));
	length += sizeof(opt);
	query[0] = (unsigned char)((length - 2) >> 8);
	query[1] = (unsigned char)(length - 2);

	fd = dial(tcp ? SOCK_STREAM : SOCK_DGRAM, resolver, 53, deadline);
	if (fd < 0)
		return -1;
	if (send_all(fd, query + (tcp ? 0 : 2), length - (tcp ? 0 : 2), deadline) < 0)
		goto failed;
	if (tcp) {
		size_t have = 0, want = 2;

		while (have < want) {
			got = receive(fd, answer + have, want - have, deadline);
			if (got == 0)
				errno = ECONNRESET;
			if (got <= 0)
				goto failed;
			have += (size_t)got;
			if (have == 2 && want == 2)
				want += get16(answer);
		}
		got = (ssize_t)have - 2;
		memmove(answer, answer + 2, (size_t)got);
	} else {
		do {
			got = receive(fd, answer, sizeof(answer), deadline);
			if (got < 0)
				goto failed;
		} while (got < 2 || get16(answer) != id);
	}
	close(fd);
	if (get16(answer) != id || dns_parse(answer, (size_t)got, result) < 0) {
		errno = EBADMSG;
		return -1;
	}
	return 0;
failed:
	got = errno;
	close(fd);
	errno = (int)got;
	return -1;
}

static void dns_show(const struct dns_result *result, char *out, size_t room)
{
	if (result->rcode) {
		snprintf(out, room, "%s", rcode_text(result->rcode));
		if (result->ede >= 0)
			snprintf(out + strlen(out), room - strlen(out), " (EDE %d%s%.80s)", result->ede, *result->ede_text ? ": " : "", result->ede_text);
	} else {
		snprintf(out, room, "%s", result->count ? result->shown : result->truncated ? "truncated" : "no records");
	}
}

static void dns_members(const struct dns_result *result)
{
	size_t used = strlen(extra);
	int i;

	used += (size_t)snprintf(extra + used, sizeof(extra) - used, ",\"rcode\":\"%s\",\"truncated\":%s,\"records\":%d,\"addresses\":[",
				 rcode_text(result->rcode), result->truncated ? "true" : "false", result->count);
	for (i = 0; i < result->addresses; i++)
		used += (size_t)snprintf(extra + used, sizeof(extra) - used, "%s\"%s\"", i ? "," : "", result->list[i]);
	snprintf(extra + used, sizeof(extra) - used, "]");
	if (result->ede >= 0)
		snprintf(extra + strlen(extra), sizeof(extra) - strlen(extra), ",\"ede\":%d", result->ede);
}

static void do_dns(char **argv)
{
	struct dns_result result;
	char text[2300];

	if (dns_ask(!strcmp(argv[0], "tcp"), argv[1], argv[2], type_number(argv[3]), &result) < 0)
		finish(0, "%s", error_text(errno));
	dns_members(&result);
	dns_show(&result, text, sizeof(text));
	finish(result.rcode == 0 && result.count > 0, "%s", text);
}

/* ---- HTTP ------------------------------------------------------------------------------------------------------ */

/* Status, or -1 with errno; body gets the start of the body. */
static int http_get(const char *address, int port, const char *host, const char *path, char *body, size_t room)
{
	long deadline = now_ms() + timeout_ms;
	char buffer[8192], *split;
	size_t have = 0;
	int status = -1, length, fd = dial(SOCK_STREAM, address, port, deadline);

	if (fd < 0)
		return -1;
	length = snprintf(buffer, sizeof(buffer), "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: probe\r\nConnection: close\r\n\r\n", path, host);
	if (send_all(fd, buffer, (size_t)length, deadline) < 0)
		goto failed;
	while (have < sizeof(buffer) - 1) {
		ssize_t got = receive(fd, buffer + have, sizeof(buffer) - 1 - have, deadline);

		if (got < 0)
			goto failed;
		if (!got)
			break;
		have += (size_t)got;
	}
	buffer[have] = 0;
	close(fd);
	if (sscanf(buffer, "HTTP/1.%*d %d", &status) != 1) {
		errno = EBADMSG;
		return -1;
	}
	split = strstr(buffer, "\r\n\r\n");
	snprintf(body, room, "%s", split ? split + 4 : "");
	body[strcspn(body, "\r\n")] = 0;
	return status;
failed:
	status = errno;
	close(fd);
	errno = status;
	return -1;
}

static void do_http(char **argv)
{
	char body[200];
	int status = http_get(argv[0], atoi(argv[1]), argv[2], argv[3], body, sizeof(body));

	if (status < 0)
		finish(0, "%s", error_text(errno));
	finish(status == 200, "HTTP %d: %s", status, body);
}

static void do_fetch(char **argv)
{
	struct dns_result result;
	char text[2300], body[200];
	int i, status = -1;

	if (dns_ask(0, argv[0], argv[1], type_number(argv[4]), &result) < 0)
		finish(0, "lookup: %s", error_text(errno));
	dns_members(&result);
	if (result.rcode || !result.addresses) {
		dns_show(&result, text, sizeof(text));
		finish(0, "lookup: %s", text);
	}
	for (i = 0; i < result.addresses && status < 0; i++)
		status = http_get(result.list[i], atoi(argv[2]), argv[1], argv[3], body, sizeof(body));
	if (status < 0)
		finish(0, "%s: %s", result.list[result.addresses - 1], error_text(errno));
	finish(status == 200, "HTTP %d: %s", status, body);
}

/* ---- plain TCP, UDP, echo -------------------------------------------------------------------------------------- */

static void do_tcp(char **argv)
{
	if (dial(SOCK_STREAM, argv[0], atoi(argv[1]), now_ms() + timeout_ms) < 0)
		finish(0, "%s", error_text(errno));
	finish(1, "connected");
}

static void do_udp(char **argv)
{
	long deadline = now_ms() + timeout_ms;
	int fd = dial(SOCK_DGRAM, argv[0], atoi(argv[1]), deadline);
	char answer[512];
	ssize_t got;

	if (fd < 0 || send_all(fd, argv[2], strlen(argv[2]), deadline) < 0)
		finish(0, "%s", error_text(errno));
	got = receive(fd, answer, sizeof(answer) - 1, deadline);
	if (got < 0)
		finish(0, "%s", error_text(errno));
	answer[got] = 0;
	finish(1, "%s", answer);
}

static unsigned int ones_sum(const void *data, size_t length, unsigned int sum)
{
	const unsigned char *at = data;
	size_t i;

	for (i = 0; i < length; i++)
		sum += i & 1 ? at[i] : (unsigned int)at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static void do_ping(char **argv)
{
	long deadline = now_ms() + timeout_ms, sent_at = now_ms();
	union address to;
	socklen_t length = address_parse(argv[0], 0, &to);
	int v6 = to.any.sa_family == AF_INET6;
	int fd = socket(to.any.sa_family, SOCK_RAW | SOCK_CLOEXEC, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
	unsigned char request[24] = { v6 ? 128 : 8 }, answer[2048];
	unsigned int id = (unsigned int)getpid() & 0xffff, sum;

	if (fd < 0)
		finish(0, "%s", error_text(errno));
	if (connect(fd, &to.any, length) < 0)
		finish(0, "%s", error_text(errno));
	request[4] = (unsigned char)(id >> 8);
	request[5] = (unsigned char)id;
	request[7] = 1;
	if (!v6) {
		sum = ~ones_sum(request, sizeof(request), 0) & 0xffff;
		request[2] = (unsigned char)(sum >> 8);
		request[3] = (unsigned char)sum;
	}
	if (send_all(fd, request, sizeof(request), deadline) < 0)
		finish(0, "%s", error_text(errno));
	for (;;) {
		ssize_t got = receive(fd, answer, sizeof(answer), deadline);
		unsigned char *icmp = v6 ? answer : answer + (answer[0] & 15) * 4;

		if (got < 0)
			finish(0, "%s", error_text(errno));
		if (icmp + 8 > answer + got || icmp[0] != (v6 ? 129 : 0) || get16(icmp + 4) != id)
			continue;
		snprintf(extra, sizeof(extra), ",\"ms\":%ld", now_ms() - sent_at);
		finish(1, "echo reply");
	}
}

/* ---- a frame with VLAN tags ------------------------------------------------------------------------------------ */

/* The gateway's MAC from the neighbour table, after one datagram made the kernel ask for it. */
static int gateway_mac(const char *device, const char *gateway, unsigned char *out, long deadline)
{
	do {
		char line[256], address[64], mac[32], name[32];
		unsigned int flags;
		FILE *table;
		int fd = dial(SOCK_DGRAM, gateway, 9, deadline), found = 0;

		if (fd >= 0) {
			send(fd, "", 1, 0);
			close(fd);
		}
		poll(NULL, 0, 50);
		table = fopen("/proc/net/arp", "r");
		while (table && fgets(line, sizeof(line), table))
			if (sscanf(line, "%63s %*s %x %31s %*s %31s", address, &flags, mac, name) == 4 && flags & 2 &&
			    !strcmp(address, gateway) && !strcmp(name, device))
				found = sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", out, out + 1, out + 2, out + 3, out + 4, out + 5) == 6;
		if (table)
			fclose(table);
		if (found)
			return 0;
	} while (now_ms() < deadline);
	return -1;
}

static void put16(unsigned char *at, unsigned int value)
{
	at[0] = (unsigned char)(value >> 8);
	at[1] = (unsigned char)value;
}

static void do_vlan(char **argv)
{
	const char *device = argv[0];
	long deadline = now_ms() + timeout_ms;
	union address to, from;
	socklen_t length = address_parse(argv[2], atoi(argv[3]), &to), size = sizeof(from);
	int v6 = to.any.sa_family == AF_INET6, fd, probe;
	unsigned int port = 20000 + (unsigned int)getpid() % 40000, octets = v6 ? 16 : 4, sum;
	unsigned char frame[256] = { 0 }, *at = frame + 12, *ip, *tcp, *source, *destination, pseudo[40] = { 0 };
	struct ifreq request = { 0 };
	struct sockaddr_ll link = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	char *tag;

	if (gateway_mac(device, argv[1], frame, deadline) < 0)
		finish(0, "gateway does not answer");
	snprintf(request.ifr_name, IFNAMSIZ, "%s", device);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
	link.sll_ifindex = (int)if_nametoindex(device);
	if (fd < 0 || bind(fd, (struct sockaddr *)&link, sizeof(link)) < 0 || ioctl(fd, SIOCGIFHWADDR, &request) < 0)
		finish(0, "%s", strerror(errno));
	memcpy(frame + 6, request.ifr_hwaddr.sa_data, 6);
	/* The kernel says which of our addresses it would use. */
	probe = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (connect(probe, &to.any, length) < 0 || getsockname(probe, &from.any, &size) < 0)
		finish(0, "%s", error_text(errno));
	close(probe);

	for (tag = strtok(argv[4], ","); tag; tag = strtok(NULL, ",")) {
		put16(at, (unsigned int)strtoul(tag, NULL, 0));
		at += 4; /* priority 0, id 0 */
	}
	put16(at, v6 ? 0x86dd : 0x0800);
	ip = at + 2;
	tcp = ip + (v6 ? 40 : 20);
	source = ip + (v6 ? 8 : 12);
	destination = source + octets;
	memcpy(source, v6 ? (void *)&from.v6.sin6_addr : (void *)&from.v4.sin_addr, octets);
	memcpy(destination, v6 ? (void *)&to.v6.sin6_addr : (void *)&to.v4.sin_addr, octets);
	if (v6) {
		ip[0] = 0x60;
		put16(ip + 4, 20);
		ip[6] = IPPROTO_TCP;
		ip[7] = 64;
	} else {
		ip[0] = 0x45;
		put16(ip + 2, 40);
		ip[8] = 64;
		ip[9] = IPPROTO_TCP;
		put16(ip + 10, ~ones_sum(ip, 20, 0) & 0xffff);
	}
	put16(tcp, port);
	put16(tcp + 2, (unsigned int)atoi(argv[3]));
	tcp[12] = 5 << 4;
	tcp[13] = 2; /* SYN */
	put16(tcp + 14, 64240);
	memcpy(pseudo, source, 2 * octets);
	put16(pseudo + 2 * octets, IPPROTO_TCP);
	put16(pseudo + 2 * octets + 2, 20);
	sum = ones_sum(pseudo, 2 * octets + 4, 0);
	put16(tcp + 16, ~ones_sum(tcp, 20, sum) & 0xffff);
	if (send(fd, frame, (size_t)(tcp + 20 - frame), 0) < 0)
		finish(0, "%s", strerror(errno));

	for (;;) {
		unsigned char answer[2048], *answer_ip = answer + 14, *answer_tcp;
		ssize_t got = receive(fd, answer, sizeof(answer), deadline);

		if (got < 0)
			finish(0, "%s", error_text(errno));
		answer_tcp = answer_ip + (v6 ? 40 : 20);
		if (answer_tcp + 20 > answer + got || get16(answer + 12) != (v6 ? 0x86dd : 0x0800) ||
		    memcmp(answer_ip + (v6 ? 8 : 12), destination, octets) || get16(answer_tcp + 2) != port)
			continue;
		finish(1, "%s", answer_tcp[13] & 4 ? "reset" : "SYN-ACK");
	}
}

/* ---------------------------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int arguments;
	void (*run)(char **argv);
} commands[] = { { "dns", 4, do_dns }, { "http", 4, do_http }, { "fetch", 5, do_fetch }, { "tcp", 2, do_tcp },
		 { "udp", 3, do_udp }, { "ping", 1, do_ping },  { "vlan", 5, do_vlan } };

int main(int argc, char **argv)
{
	const char *bound = getenv("PROBE_TIMEOUT_MS");
	size_t i;

	if (bound && atoi(bound) > 0)
		timeout_ms = atoi(bound);
	for (i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(argv[1], commands[i].name) && argc == 2 + commands[i].arguments)
			commands[i].run(argv + 2);
	fprintf(stderr, "usage: probe dns udp|tcp RESOLVER NAME TYPE | http ADDRESS PORT HOST PATH | fetch RESOLVER NAME PORT PATH A|AAAA |\n"
			"       tcp ADDRESS PORT | udp ADDRESS PORT TEXT | ping ADDRESS | vlan DEVICE GATEWAY ADDRESS PORT TPID[,TPID...]\n");
	return 2;
}
