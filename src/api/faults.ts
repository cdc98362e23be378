/**
 * What a value must be, in words: of the faults that a schema finds in the agent's configuration and in requests.
 *
 * Holds always: pure; says what is wanted, and never the value, which may be long or secret. A message that the schema itself
 * brings is told as it is.
 */
import type { z } from "zod";

const kinds: Readonly<Record<string, string>> = { string: "a text", number: "a number", int: "a whole number", boolean: "true or false", array: "a list", object: "a mapping of keys to values", record: "a mapping of keys to values" };

export function faultText(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case "invalid_type":
      // The schema's own words, where it has some.
      if (!issue.message.startsWith("Invalid input")) return issue.message;
      return `${kinds[issue.expected] ?? issue.expected} is wanted${issue.message.endsWith("received undefined") ? ", and it is missing" : ""}`;
    case "too_small":
      if (!issue.message.startsWith("Too small")) return issue.message;
      return issue.origin === "string" ? (Number(issue.minimum) === 1 ? "it is empty" : `${issue.minimum} letters at least are wanted`) : issue.origin === "array" ? `${issue.minimum} ${Number(issue.minimum) === 1 ? "entry" : "entries"} at least ${Number(issue.minimum) === 1 ? "is" : "are"} wanted` : `at least ${issue.minimum} is wanted`;
    case "too_big":
      if (!issue.message.startsWith("Too big")) return issue.message;
      return issue.origin === "string" ? `it is longer than ${issue.maximum} letters` : issue.origin === "array" ? `it has more than ${issue.maximum} entries` : `at most ${issue.maximum} is wanted`;
    case "invalid_value":
      return issue.message.startsWith("Invalid") ? `write ${issue.values.length === 1 ? "" : "one of: "}${issue.values.map(String).join(", ")}` : issue.message;
    default:
      return issue.message;
  }
}
