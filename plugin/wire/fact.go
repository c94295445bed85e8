package wire

import (
	"encoding/json"
	"fmt"
	"time"
)

// FactsKey is the response key under which facts are handed out. The mount is
// tuned to show it in audit devices; the version in its name changes with the
// format.
const FactsKey = "dbops_facts_v1"

// Fact is one thing that Vault does not audit by itself: what the plugin did
// without a request, or refused. Its compact JSON is handed out in an audited
// read, so that audit devices hold it. Facts of a mount form a chain of their own,
// like the events of an agent.
type Fact struct {
	V         int       `json:"v"` // 1
	T         time.Time `json:"t"`
	Seq       string    `json:"seq"` // decimal, from 1
	EventType EventType `json:"event_type"`
	Severity  Severity  `json:"severity"`
	Outcome   Outcome   `json:"outcome"`
	OpID      string    `json:"op_id,omitempty"`
	EntityID  string    `json:"entity_id,omitempty"` // whom it concerns
	Agent     string    `json:"agent,omitempty"`
	// Connection, Role and Username say which login; Object is any other thing.
	Connection string `json:"connection,omitempty"`
	Role       string `json:"role,omitempty"`
	Username   string `json:"username,omitempty"`
	Object     string `json:"object,omitempty"`
	Code       Code   `json:"code,omitempty"`
	Rule       string `json:"rule,omitempty"` // that refused
	Detail     string `json:"detail,omitempty"`
	// Count is how often it happened since the last fact of the same kind, when
	// more than once.
	Count string `json:"count,omitempty"`
	Prev  string `json:"prev"` // hash of the fact before, empty for the first
}

// Encode returns the compact JSON of f and its hash, which is [EventHash].
func (f Fact) Encode() (text, hash string, err error) {
	content, err := json.Marshal(f)
	if err != nil {
		return "", "", fmt.Errorf("encode fact: %w", err)
	}
	return string(content), EventHash(string(content)), nil
}

// FactsResponse answers a read of facts: the oldest that wait, as many as fit.
type FactsResponse struct {
	Facts []string `json:"dbops_facts_v1"`
	// Seq and Head are of the last fact in the answer; who has received it
	// acknowledges that Seq.
	Seq  string `json:"seq"`
	Head string `json:"head"`
	// Waiting is how many there are in all, those in the answer included.
	Waiting string `json:"waiting"`
}

// FactsAck acknowledges every fact up to Seq: they stand in an audit device.
type FactsAck struct {
	Seq string `json:"seq"`
}
