/**
 * What the package offers to programs: a client of the agent's API, its types, and the errors.
 *
 * Holds always: loading it loads no addon and touches nothing.
 */
export { AgentClient, DEFAULT_SOCKET } from "./api/client.js";
export {
  API_VERSION, type AgentStatus, type ApiError, type AttachAnswer, type AttachRequest, type CaAnswer, type ExplainQuery, type FlowsAnswer, type PinsAnswer, type PolicyAnswer, type PolicyDiff, type PolicyRequest,
  type ReloadAnswer, type SandboxStatus, type SandboxSummary, type SecretsAnswer, type SetPolicyAnswer, type VersionAnswer, type WatchQuery,
} from "./api/schema.js";
export { EnforcerError, ExitStatus, errorKinds, type ErrorCode } from "./errors.js";
export type { Explanation, FlowExplanation, Judgement, PinState, RuleFact } from "./explain/explain.js";
export type { WatchEvent } from "./agent/watch.js";
