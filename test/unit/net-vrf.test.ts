/** The VRF that a process was started in, by its control groups. */
import { expect, test } from "vitest";
import { vrfOf } from "../../src/net/vrf.js";

test.each([
  ["0::/vrf/red\n", "red"], ["0::/host-ns/vrf/red\n", "red"], ["0::/system.slice/a.service/vrf/mgmt-1\n", "mgmt-1"], ["12:cpu:/x\n0::/user.slice/vrf/red\n", "red"],
  ["0::/\n", null], ["0::/system.slice/enforcer-agent.service\n", null], ["0::/vrf\n", null], ["0::/vrf/red/more\n", null], ["0::/myvrf/red\n", null], ["", null],
])("%j: %s", (cgroups, vrf) => { expect(vrfOf(cgroups)).toBe(vrf); });
