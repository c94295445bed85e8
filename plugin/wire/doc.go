// Package wire is the vocabulary shared by the plugin, the agent and the CLI:
// requests and answers, operation states, error codes, events, paths below the
// mount, and the boxed [Secret].
//
// It imports the standard library only. Struct tags name the JSON keys of the
// HTTP API. Counters and fencing numbers travel as decimal strings, because a
// number reaches an external plugin as a float64 and audit devices hash it.
package wire

// Version is the version of this vocabulary. An agent sends it in each poll; a
// plugin refuses a newer one it does not know with [CodeConflict].
const Version = 1
