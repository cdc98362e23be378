/**
 * The guest's half of a TLS handshake: a connection is handed to a server that does not listen.
 *
 * Holds always: the time limit is total, from the call on, whatever octets come; whoever fails is destroyed, and who ends
 * the connection has failed. The name the guest
 * says in its (last) ClientHello is compared with the one that was judged: a second hello after a HelloRetryRequest may differ.
 * Does not decide which name is right, nor look at the first hello.
 */
import type { Socket } from "node:net";
import type { Server, TLSSocket } from "node:tls";

/** Why a guest's handshake did not come to an end. */
export type HandshakeFailure = "timeout" | "closed" | "untrusted" | "protocol" | "name-changed";

export class HandshakeError extends Error {
  constructor(readonly reason: HandshakeFailure, message: string) {
    super(message);
    this.name = "HandshakeError";
  }
}

interface Waiting { done(socket: TLSSocket): void; failed(error: NodeJS.ErrnoException): void }
const waiting = new WeakMap<Server, Map<string, Waiting>>();

/**
 * @param raw the guest's connection, with its hello unread. @param name the judged name, canonical; null: the guest sent none.
 * @param limitMs for the whole handshake.
 * @returns the decrypted connection, not yet flowing. @throws HandshakeError; raw is destroyed then.
 */
export function serverHandshake(raw: Socket, server: Server, name: string | null, limitMs: number): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const table = tableOf(server);
    const id = identityOf(raw);
    const finish = (): void => {
      clearTimeout(timer);
      table.delete(id);
      raw.off("close", closed);
    };
    const fail = (reason: HandshakeFailure, message: string): void => {
      finish();
      raw.destroy();
      reject(new HandshakeError(reason, message));
    };
    const closed = (): void => fail("closed", "the guest closed the connection within its handshake");
    const timer = setTimeout(() => fail("timeout", "the guest's handshake took too long"), limitMs);
    if (table.has(id) || raw.destroyed) {
      closed();
      return;
    }
    raw.once("close", closed);
    table.set(id, {
      done(socket) {
        finish();
        socket.allowHalfOpen = true;
        socket.on("error", () => undefined); // whoever reads it adds what it needs; none may end the process
        // A resumed TLS 1.2 session tells no name in Node; the server's ticket keys are this name's alone.
        const said: unknown = socket.servername;
        const same = typeof said === "string" ? said.toLowerCase() === name : name === null || socket.isSessionReused();
        if (same) resolve(socket);
        else {
          socket.destroy();
          reject(new HandshakeError("name-changed", "the guest named another server in its second ClientHello"));
        }
      },
      failed(error) {
        const code = error.code ?? "";
        const untrusted = /UNKNOWN_CA|CERTIFICATE_UNKNOWN|BAD_CERTIFICATE/.test(code);
        fail(untrusted ? "untrusted" : code === "ECONNRESET" ? "closed" : "protocol", untrusted ? "the guest does not trust the sandbox's CA" : `handshake with the guest: ${code}`);
      },
    });
    // A guest that ends its sending before its handshake is over has gone; one that does so later may still be answered.
    raw.allowHalfOpen = false;
    server.emit("connection", raw);
  });
}

function tableOf(server: Server): Map<string, Waiting> {
  const known = waiting.get(server);
  if (known !== undefined) return known;
  const table = new Map<string, Waiting>();
  waiting.set(server, table);
  server.on("secureConnection", (socket: TLSSocket) => {
    const entry = table.get(identityOf(socket));
    if (entry === undefined) socket.destroy();
    else entry.done(socket);
  });
  server.on("tlsClientError", (error: NodeJS.ErrnoException, socket: TLSSocket) => {
    table.get(identityOf(socket))?.failed(error);
  });
  return table;
}

/** A connection's four-tuple: what a server's events and the connection handed to it have in common. */
function identityOf(socket: Socket): string { return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress} ${socket.localPort}`; }
