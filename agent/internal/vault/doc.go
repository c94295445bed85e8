// Package vault is the agent's and the CLI's way to Vault: the only importer of
// vault/api.
//
// A [Client] sends one request per call, with a timeout and without retries of
// its own: the caller knows how long an operation may wait. Each failure is an
// [*Error], out of which errors.As finds the [wire.Error] with its code. A
// password in an answer is boxed before anything else sees it, and no request or
// answer is ever logged.
package vault
