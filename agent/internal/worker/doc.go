// Package worker is the process that runs inside a sandbox, [Serve], and the
// agent's way to talk to it, [Client].
//
// # Protocol
//
// The agent writes to the worker's stdin and reads its stdout. Both directions
// carry messages of one form:
//
//	{"type":"run","id":3,"body":118,"raw":40213}\n
//	<body bytes of JSON><raw bytes as they are>\n
//
// The first line is JSON and at most 256 bytes long. Body is JSON of a type that
// depends on the message; raw is an engine's own JSON (an inspection, a shape),
// carried untouched because digests are taken over its bytes: encoding/json
// would rewrite it. Body and raw together have at most [MaxMessage] bytes; a
// reader keeps what has arrived, never what was announced.
//
//	worker → agent  hello     first message; the protocol's version and the engines
//	agent → worker  open      endpoints and credentials of one phase; replaces earlier ones
//	agent → worker  inspect   a side; answered with raw = what the engine says
//	agent → worker  run       an operation; raw = its approved shape
//	agent → worker  cleanup   what an operation left at the target
//	worker → agent  result    answer to the request of that id
//	worker → agent  error     the same, failed: step, code, reason, hint
//	worker → agent  begin, end, verified   calls to [engine.Host] during a run
//	agent → worker  answer    answer to the call of that id, with an error or without
//	worker → agent  progress  of a run; unanswered, at most one in 100 ms
//	both            cancel    stop the request, or give up the call, of that id
//
// Requests and calls are numbered by their sender from 1. Stdin is the dead
// man's switch as well: when it ends, the worker cancels everything and exits.
//
// Secrets travel in open and nowhere else. Stderr carries log lines, from which
// the passwords of open are removed.
//
// The worker is not trusted: whatever it writes is bounded in size, number and
// content, and what breaks the rules ends the conversation.
package worker
