/**
 * A value written into the place of its placeholder, as that place writes text.
 *
 * Holds always: the result says the value and nothing else to whoever reads the place; where that cannot be known, null. Pure.
 */

export type BodyKind = "json" | "form" | "other";

/** @param types values of Content-Type. */
export function bodyKind(types: readonly string[]): BodyKind {
  const type = (types[0] ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
  if (types.length === 1 && (type === "application/json" || type.endsWith("+json") || type === "application/x-ndjson")) return "json";
  return types.length === 1 && type === "application/x-www-form-urlencoded" ? "form" : "other";
}

/** Everything but RFC 3986's unreserved characters escaped. */
export function percentEncoded(value: Buffer): Buffer {
  return Buffer.from(value.toString("latin1").replace(/[^A-Za-z0-9._~-]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`), "latin1");
}

/** Within a string of a JSON text. Values have no control characters. */
export function jsonEscaped(value: Buffer): Buffer { return Buffer.from(value.toString("latin1").replace(/["\\]/g, "\\$&"), "latin1"); }

/** null: it has characters that could mean something in a text of unknown kind. */
export function inBody(value: Buffer, kind: BodyKind): Buffer | null {
  switch (kind) {
    case "json": return jsonEscaped(value);
    case "form": return percentEncoded(value);
    case "other": return /^[^"'<>&\\ ]*$/.test(value.toString("latin1")) ? value : null;
  }
}
