/**
 * The kernel, as Node sees it: a thin binding of libbpf and of the few system calls that Node lacks. No policy in here.
 *
 * Holds always: every integer from JavaScript is range-checked (RangeError); every failed system call throws a
 * NativeError with code, syscall and, where known, path, ifindex and the verifier's last useful line; close() is
 * idempotent; using a closed object throws EBADF. What is attached to the event loop (RingBuffer, NetlinkMonitor,
 * UdpBatch, SplicePump, Tap.onFrames) keeps the loop alive and itself from being collected until it is closed; what its callback
 * throws becomes an uncaught exception. Everything else is released with its last reference. All calls are synchronous.
 * The module may be loaded in any number of worker threads; descriptors are per process, so a map's fd number may be
 * handed to a worker and opened there with fromFd.
 */

export interface NativeError extends Error {
  /** errno name, such as "EPERM". */
  code: string;
  /** the system call or libbpf function that failed, such as "bpf(BPF_MAP_CREATE)". */
  syscall: string;
  path?: string;
  ifindex?: number;
  /** last useful line of the verifier's log, when a program was refused. */
  verifier?: string;
}

export type MapType =
  | "hash" | "array" | "percpu_hash" | "percpu_array" | "lru_hash" | "lpm_trie" | "ringbuf" | "prog_array" | "array_of_maps" | "hash_of_maps";

export interface MapInfo {
  id: number; type: MapType; name: string; keySize: number;
  /** as declared; for per-CPU maps a lookup returns roundup(valueSize, 8) * possibleCpus octets. */
  valueSize: number; maxEntries: number; flags: number;
}

export interface StructLayout {
  size: number;
  /**
   * name → {offset, size} in octets, nested structs with dotted names ("header.uid"), members of anonymous structs and
   * unions under their own names, arrays as one field.
   */
  fields: Record<string, { offset: number; size: number }>;
}

export class BpfObject {
  /**
   * Opens and loads an object file.
   * @param options.maxEntries overrides by map name (before load); for a map-in-map this sizes the outer map.
   * @param options.pinnedMaps map name → bpffs path: the map is taken from that pin instead of being created. EINVAL when
   *   the pinned map has another type, other sizes (after maxEntries) or other flags.
   * @param options.disabledPrograms names not to load; they are not in programs either.
   * @throws NativeError with verifier set when a program is refused; ENOENT for a name the object has not.
   */
  static load(path: string, options?: {
    maxEntries?: Record<string, number>; pinnedMaps?: Record<string, string>; disabledPrograms?: string[];
  }): BpfObject;
  readonly maps: string[];
  readonly programs: string[];
  map(name: string): BpfMap;
  program(name: string): BpfProgram;
  /** Layout of a struct or union in the object's BTF; throws when there is none of that name. */
  layout(structName: string): StructLayout;
  /** Prototype for inner maps of a map-in-map, from the object's BTF. */
  innerTemplate(outerName: string): { type: MapType; keySize: number; valueSize: number; maxEntries: number; flags: number };
  close(): void;
}

export class BpfMap {
  static create(options: { type: MapType; name: string; keySize: number; valueSize: number; maxEntries: number; flags?: number; innerFd?: number }): BpfMap;
  static fromPin(path: string): BpfMap;
  static fromId(id: number): BpfMap;
  /** Duplicates the descriptor. */
  static fromFd(fd: number): BpfMap;
  readonly fd: number;
  readonly info: MapInfo;
  /** memlock of /proc/self/fdinfo: octets of kernel memory as the kernel counts them (before Linux 6.4 an estimate from the sizes). */
  memory(): number;
  lookup(key: Uint8Array): Buffer | null;
  /** Like lookup into a buffer of the right size; false when there is no such key. */
  lookupInto(key: Uint8Array, out: Uint8Array): boolean;
  /** flags: 0 any, 1 BPF_NOEXIST, 2 BPF_EXIST. Throws E2BIG when full, EEXIST/ENOENT by flag. */
  update(key: Uint8Array, value: Uint8Array, flags?: number): void;
  /** Outer map. Programs that begin from now on see the change; one that began before may finish with the former inner map. */
  updateInner(index: number, inner: BpfMap): void;
  /** false when there was no such key. */
  delete(key: Uint8Array): boolean;
  nextKey(key: Uint8Array | null): Buffer | null;
  /** Batch operations fall back to single ones where the kernel's map type has none. keys and values are count elements, back to back. */
  updateBatch(keys: Uint8Array, values: Uint8Array, count: number, flags?: number): void;
  /** All entries (a snapshot in hash order; entries changed meanwhile may be missed or doubled). */
  entries(): { keys: Buffer; values: Buffer; count: number };
  /**
   * The same in parts, for large hash maps: some `room` entries behind `after`, which is `next` of the part before, null at first.
   * `next` is null when that was the last. For map types with a batch lookup.
   */
  page(after: Uint8Array | null, room: number): { keys: Buffer; values: Buffer; count: number; next: Buffer | null };
  deleteBatch(keys: Uint8Array, count: number): number;
  pin(path: string): void;
  close(): void;
}

export class BpfProgram {
  static fromPin(path: string): BpfProgram;
  static fromId(id: number): BpfProgram;
  /**
   * Loads a TC program that writes `mark` (0..2^31-1) into skb->cb[0] and goes on in the program at `index` of a map of type prog_array;
   * where there is none, `otherwise` is its TC code.
   * @param options.name at most 15 octets.
   */
  static tailCall(options: { name: string; mark: number; programsFd: number; index: number; otherwise: number }): BpfProgram;
  readonly fd: number;
  readonly info: { id: number; name: string; tag: string; jited: boolean; verifiedInstructions: number; memlock: number; mapIds: number[] };
  /**
   * BPF_PROG_TEST_RUN. context is a struct __sk_buff (only the fields the kernel accepts may be set).
   * @param repeat 1..1e9; durationNs is the kernel's mean per run.
   */
  testRun(options: { data: Uint8Array; context?: Uint8Array; repeat?: number }): { returnValue: number; durationNs: number; data: Buffer; context: Buffer | null };
  pin(path: string): void;
  close(): void;
}

export type TcHook = "ingress" | "egress";

export class BpfLink {
  /** TCX link (kernel ≥ 6.6) at the head of the chain. Throws EINVAL where the kernel has no TCX. */
  static attachTcx(program: BpfProgram, ifindex: number, hook: TcHook): BpfLink;
  static fromPin(path: string): BpfLink;
  static fromId(id: number): BpfLink;
  readonly fd: number;
  readonly info: { id: number; programId: number; ifindex: number; hook: TcHook };
  /** Replaces the program atomically. EEXIST when that program stands on the hook already, ENOLINK when the link is detached. */
  update(program: BpfProgram): void;
  pin(path: string): void;
  /** Detaches at once, whoever else holds the link; info.ifindex is 0 from then on, as it is when the device has gone. */
  detach(): void;
  close(): void;
}

/** Programs on a TCX hook in running order; throws EINVAL where the kernel has no TCX. */
export function queryTcx(ifindex: number, hook: TcHook): { programId: number; linkId: number }[];
/**
 * clsact + cls_bpf direct-action filter, handle 1, priority 1: for kernels without TCX. attach creates clsact if missing
 * and throws EEXIST for a filter that is there already, unless replace is set; detach throws ENOENT when there is none.
 */
export function attachClsact(program: BpfProgram, ifindex: number, hook: TcHook, options?: { handle?: number; priority?: number; replace?: boolean }): void;
export function detachClsact(ifindex: number, hook: TcHook, options?: { handle?: number; priority?: number }): void;
export function queryClsact(ifindex: number, hook: TcHook, options?: { handle?: number; priority?: number }): { programId: number } | null;

/** Removes the clsact qdisc if no filter is left on either hook. False when filters (of anybody) remain or there is no clsact. */
export function removeClsact(ifindex: number): boolean;

export class RingBuffer {
  /** One callback per wake-up with the records that were waiting, each copied; at most 4096 a call. Runs on the loop of the thread that made it. */
  constructor(map: BpfMap, onRecords: (records: Buffer[]) => void);
  /** Takes what waits now, synchronously. */
  drain(): void;
  close(): void;
}

/**
 * Sends one netlink request (or dump) from the calling thread's namespace and returns all answer messages' bytes (struct
 * nlmsghdr each, without NLMSG_DONE and acknowledgements). NLM_F_REQUEST and NLM_F_ACK are set by it. Throws NativeError
 * with the kernel's errno and extack text; EINTR when a dump was interrupted by changes eight times running, ETIMEDOUT
 * after five seconds of silence.
 */
export function netlinkRequest(message: Uint8Array, protocol?: number): Buffer[];

/**
 * Sends several netlink messages in one datagram, as nfnetlink's transactions want them (default protocol: NETLINK_NETFILTER),
 * unchanged. Returns when each message with NLM_F_ACK was acknowledged. Throws NativeError with the kernel's first error;
 * RangeError when messages are not whole, or none asks for an acknowledgement.
 */
export function netlinkBatch(messages: Uint8Array, protocol?: number): void;

export class NetlinkMonitor {
  /** @param groups RTNLGRP_* numbers. onMessages gets whole messages; null when the socket overran and state must be read anew. */
  constructor(groups: number[], onMessages: (messages: Buffer[] | null) => void);
  /** Messages that have come and were not handed to the callback yet; it will not get them. For who is about to read the state anew. */
  drain(): Buffer[];
  close(): void;
}

/** Opens /proc/self/task/<tid>/ns/net or a given namespace file; the fd belongs to the caller. */
export function openNetns(path?: string): number;
/** setns(2) for the calling thread only. */
export function setNetns(fd: number): void;
/** Makes a new network namespace, returns its descriptor and leaves the calling thread where it was. */
export function createNetns(): number;
/** Inode of the namespace the fd stands for. */
export function netnsInode(fd: number): number;
export function closeFd(fd: number): void;
/** flock(LOCK_EX|LOCK_NB) on the file, created 0600, or on a directory that is there; throws EWOULDBLOCK when somebody holds it. Held until closeFd. */
export function lockFile(path: string): number;
export function mountBpffs(path: string): void;
/** sd_notify(3): sends text as one datagram to a Unix socket, `@name` for an abstract one. Does not wait. */
export function notifySocket(path: string, text: string): void;
/** statfs f_type of the path. */
export function fsType(path: string): number;

/** CLOCK_MONOTONIC_COARSE in ns: the clock of bpf_ktime_get_coarse_ns. */
export function clockMonotonicCoarse(): bigint;
/** Length of a kernel tick in ns: the resolution of that clock, clock_getres(2). jiffies64 counts these. */
export function tickNanoseconds(): number;
export function possibleCpus(): number;
export function libbpfVersion(): string;

/** Effective capabilities as a bit mask, capget(2). */
export function effectiveCapabilities(): bigint;

/**
 * UDP in batches: recvmmsg(2) on readiness, one JavaScript call per batch, sendmmsg(2) for the answers. Bound in the
 * calling thread's namespace at construction. An IPv6 socket takes IPv6 only.
 */
export class UdpBatch {
  /**
   * @param options.address numeric address, without zone; options.port 0 for any; options.device SO_BINDTODEVICE.
   * @param options.receiveBuffer octets, SO_RCVBUFFORCE. options.cellSize 64 to 65536, default 2048. options.batch
   *   datagrams a call at most, 1 to 1024, default 64.
   * @param onBatch data holds the datagrams in cells of cellSize octets, back to back; a longer one is cut off, and
   *   lengths[i] > cellSize says so. peers[i] is at 20*i: family (u16 LE: 4 or 6), port (u16 LE), address (16 octets,
   *   IPv4-mapped for IPv4). The buffers are used again after the callback returns.
   */
  constructor(options: { address: string; port: number; device?: string; reusePort?: boolean; receiveBuffer?: number; cellSize?: number; batch?: number },
    onBatch: (count: number, data: Buffer, lengths: Uint32Array, peers: Buffer) => void);
  readonly address: { address: string; port: number; family: 4 | 6 };
  /**
   * Queues a copy of a datagram (length 0 to 65507) to the peer (same 20-octet form); flushed with sendmmsg at the end of
   * the callback, by flush(), by close(), or when 256 datagrams or 256 KiB wait. Never blocks; what a full socket or the
   * network refuses is dropped and counted.
   */
  send(data: Uint8Array, offset: number, length: number, peers: Buffer, peerIndex: number): void;
  flush(): void;
  readonly dropped: number;
  close(): void;
}

export interface SpliceCounters {
  /** octets of a that b's socket has taken, and of b that a's has. */
  forth: number;
  back: number;
}

/**
 * Moves octets between pairs of stream sockets on a thread of its own, without JavaScript and without copying: splice(2). What
 * comes is passed on unaltered and in order; a side that ends its sending ends that direction alone; an error on either side, or
 * end(), resets both. A pair is over when both directions have ended. At most 256 KiB of each direction are kept, in a pipe
 * that a pair has only while something is in it; beyond 128 pipes of an owner or 2,048 of all (4 are sure for each owner), or where
 * none can be had, octets are copied and none kept. Owners take turns.
 */
export class SplicePump {
  /** Starts the thread. @param onEnded pairs that are over, told once each. @throws NativeError EAGAIN, EMFILE: no thread, no descriptors. */
  constructor(onEnded: (ended: ({ id: number } & SpliceCounters)[]) => void);
  /** Pairs that have not been told to be over. */
  readonly size: number;
  /**
   * @param owner 0 to 2^32-1, numbers that are used again: something is kept for each that ever had a pair.
   * Duplicates both descriptors; the caller closes its own and reads and writes nothing any more. The sockets become non-blocking.
   * @param forth, back octets that were read of a and of b before, and go out first. @returns the pair's id, never used again.
   */
  add(owner: number, a: number, b: number, forth: Uint8Array, back: Uint8Array): number;
  /** held: octets that one side has sent and the other has not taken. null: told to be over, or by close(). */
  counters(id: number): (SpliceCounters & { held: number }) | null;
  /** Resets both sides. When it returns, at most the system call under way moves octets of the pair. */
  end(id: number): void;
  /** Ends the thread; what is left is reset, and returned as the last that is told. */
  close(): ({ id: number } & SpliceCounters)[];
}

/**
 * Opens /dev/net/tun (IFF_TAP|IFF_NO_PI, with vnet header if asked) in the calling thread's namespace. For tests,
 * benchmarks and the self-test. With vnetHeader every read and written frame begins with the 10-octet struct
 * virtio_net_hdr.
 */
export class Tap {
  constructor(name: string, options?: { vnetHeader?: boolean; multiQueue?: boolean; persist?: boolean; offloads?: number });
  readonly name: string;
  readonly ifindex: number;
  readonly fd: number;
  write(frame: Uint8Array): void;
  /** Writes count times in one native loop and returns the nanoseconds taken (for benchmarks). */
  writeRepeated(frame: Uint8Array, count: number): number;
  /** Next frame that waits, or null. */
  read(): Buffer | null;
  /** Calls back for each frame; replaces read(). */
  onFrames(callback: (frames: Buffer[]) => void): void;
  close(): void;
}

/**
 * Executes a program in place of this process, with no more capabilities than `keep` (a bit mask) and no way to gain others.
 * Returns only by throwing. Needs CAP_SETPCAP.
 * @param args with the program's own name first.
 */
export function execConfined(file: string, args: string[], keep: bigint): never;

/** This process leaves no core dump, neither a file nor at a program that core_pattern names, until it executes another. Its /proc is root's. */
export function forbidCore(): void;
