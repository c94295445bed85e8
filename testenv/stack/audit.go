package stack

import (
	"encoding/json"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// auditEntry is what we read of an entry of Vault's audit device.
type auditEntry struct {
	Type    string `json:"type"`
	Error   string `json:"error"`
	Request struct {
		Path      string         `json:"path"`
		Operation string         `json:"operation"`
		Data      map[string]any `json:"data"`
	} `json:"request"`
	Auth struct {
		EntityID string         `json:"entity_id"`
		Metadata map[string]any `json:"metadata"`
	} `json:"auth"`
}

// AuditedEvent is one event found in the audit file.
type AuditedEvent struct {
	wire.Event
	Text      string // the exact bytes
	Responses int    // successful response entries it stands in
}

// AuditedEvents returns the events of an operation in the order of their
// sequence numbers, as they stand in successful response entries on the agent's
// own path. Copies that differ fail the test: an event is what its bytes are.
func (s *Stack) AuditedEvents(operation string) []AuditedEvent {
	s.T.Helper()
	var found []AuditedEvent
	index := map[string]int{}
	path := s.mount.Events(AgentName, operation)
	for _, raw := range s.Vault.AuditEntries() {
		var entry auditEntry
		if err := json.Unmarshal(raw, &entry); err != nil {
			s.T.Fatalf("audit entry: %v", err)
		}
		if entry.Type != "response" || entry.Error != "" || entry.Request.Path != path {
			continue
		}
		texts, ok := entry.Request.Data[wire.EventsKey].([]any)
		if !ok {
			s.T.Fatalf("audit entry on %s without readable events: %v", path, entry.Request.Data)
		}
		for _, value := range texts {
			text, _ := value.(string)
			if strings.HasPrefix(text, "hmac-") {
				s.T.Fatalf("the audit device hashes events: the mount is not tuned")
			}
			var event wire.Event
			if err := json.Unmarshal([]byte(text), &event); err != nil {
				s.T.Fatalf("event in audit file: %v", err)
			}
			key := event.Epoch + "/" + event.Seq
			at, known := index[key]
			if !known {
				index[key] = len(found)
				found = append(found, AuditedEvent{Event: event, Text: text, Responses: 1})
				continue
			}
			if found[at].Text != text {
				s.T.Fatalf("two different events %s:\n%s\n%s", key, found[at].Text, text)
			}
			found[at].Responses++
		}
	}
	return found
}
