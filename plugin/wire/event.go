package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// EventsKey is the request key under which events travel. The mount is tuned to
// show it in audit devices; the version in its name changes with the format.
const EventsKey = "dbops_events_v1"

// Limits on one batch of events.
const (
	EventBatchBytes  = 64 << 10 // default
	EventBatchCount  = 200      // default
	EventBatchMaxLen = 512 << 10
)

// Event is one audit record. Its compact JSON is the unit of everything: what is
// spooled, hashed, sent and found in the audit device are the same bytes.
type Event struct {
	V         int       `json:"v"` // 1
	T         time.Time `json:"t"`
	Agent     string    `json:"agent"`
	Epoch     string    `json:"epoch"` // one chain; grows when a spool was lost
	Seq       string    `json:"seq"`   // decimal, from 1 within the epoch
	OpID      string    `json:"op_id"`
	Operation Kind      `json:"operation"`
	Source    string    `json:"source"`
	Target    string    `json:"target"`
	User      User      `json:"user"`
	EventType EventType `json:"event_type"`
	Severity  Severity  `json:"severity"`
	Outcome   Outcome   `json:"outcome"`
	Phase     Step      `json:"phase"`
	Object    string    `json:"object,omitempty"` // a table's name, an image id, …
	Rows      string    `json:"rows,omitempty"`
	Bytes     string    `json:"bytes,omitempty"`
	DurMS     string    `json:"dur_ms,omitempty"`
	Code      Code      `json:"code,omitempty"`
	Detail    string    `json:"detail,omitempty"` // SQLSTATE, digest, or another fact without data
	Prev      string    `json:"prev"`             // hash of the event before; of the last head for the first of an epoch
}

// Encode returns the compact JSON of e and its hash.
func (e Event) Encode() (text, hash string, err error) {
	content, err := json.Marshal(e)
	if err != nil {
		return "", "", fmt.Errorf("encode event: %w", err)
	}
	return string(content), EventHash(string(content)), nil
}

// EventHash is the hash an event is chained by: SHA-256 in hex over its exact
// bytes. Prev of the very first event of an agent is the empty string.
func EventHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Chain is the end of an agent's chain as the plugin knows it.
type Chain struct {
	Epoch string `json:"epoch"` // decimal; "0" before the first event
	Seq   string `json:"seq"`   // of the last event, decimal
	Head  string `json:"head"`  // its hash; empty before the first
}

// EventsRequest is the body of agents/:name/operations/:id/events. All its events
// are of that agent and operation and continue the agent's chain: the first has
// seq+1 in the same epoch, or seq 1 in epoch+1, and prev = the stored head. The
// same batch sent again is answered like the first time.
type EventsRequest struct {
	Events []string `json:"dbops_events_v1"`
}
