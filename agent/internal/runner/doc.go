// Package runner does the agent's work: it asks Vault for operations, takes each
// through planning and running in a sandbox of its own, and brings every one to
// an end, whatever fails in between.
//
// The order of things is the guarantee. An intention is in the journal, and its
// event on disk, before the effect. A claim ends with the accounts given back,
// the sandbox removed, the events delivered and the finish acknowledged, and only
// then is the journal entry removed; so a start after a crash finds what is left
// to do. A target that may hold something of ours is cleaned by the engine, which
// also says whether the copy had been switched in: that, not the agent's memory,
// decides between succeeded and failed.
package runner
