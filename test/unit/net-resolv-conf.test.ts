import { expect, test } from "vitest";

import { formatAddress } from "../../src/addresses/address.js";
import { parseResolvConf } from "../../src/net/resolv-conf.js";

const parse = (text: string) => {
  const { nameservers, ignored } = parseResolvConf(text);
  return { nameservers: nameservers.map(formatAddress), ignored };
};

test("nameservers in order, each once, whatever else stands there", () => {
  expect(parse("# comment\nsearch corp.example\nnameserver 9.9.9.9\nnameserver\t2620:fe::fe  # quad9\noptions edns0\nnameserver 9.9.9.9\r\n;nameserver 1.1.1.1\n nameserver 8.8.8.8\n")).toEqual({ nameservers: ["9.9.9.9", "2620:fe::fe"], ignored: [] });
});

test("what cannot be used is told with its line", () => {
  expect(parse("nameserver fe80::1%eth0\nnameserver resolver.example\nnameserver 010.0.0.1\nnameserver\nnameservers 1.1.1.1\n")).toEqual({
    nameservers: [],
    ignored: [
      "line 1: fe80::1%eth0 has a zone, which belongs to one device; name another resolver with --upstream",
      "line 2: resolver.example is not an address", "line 3: 010.0.0.1 is not an address", "line 4: nameserver without an address",
    ],
  });
});

test("an empty file names none", () => {
  expect(parse("")).toEqual({ nameservers: [], ignored: [] });
});
