/**
 * Loads the addon that node-gyp built beside this file and names its exports, so that ESM consumers can import them.
 *
 * Holds always: what is exported here is what index.d.ts declares. Does not build anything and searches nowhere else.
 */
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

function load() {
  try {
    return require("./build/Release/enforcer_native.node");
  } catch (cause) {
    const reason = cause.code === "MODULE_NOT_FOUND"
      ? "it has not been built: run make build"
      : `${cause.message} (built for another Node or libbpf? run make build again)`;
    throw new Error(`cannot load the native addon: ${reason}`, { cause });
  }
}

const binding = load();

export const {
  BpfObject, BpfMap, BpfProgram, BpfLink, RingBuffer, NetlinkMonitor, UdpBatch, SplicePump, Tap,
  queryTcx, attachClsact, detachClsact, queryClsact, removeClsact,
  netlinkRequest, netlinkBatch, openNetns, setNetns, createNetns, netnsInode, closeFd, lockFile, mountBpffs, fsType, notifySocket,
  clockMonotonicCoarse, tickNanoseconds, possibleCpus, libbpfVersion, effectiveCapabilities, execConfined, forbidCore,
} = binding;
