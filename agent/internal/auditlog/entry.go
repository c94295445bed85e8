package auditlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Place is where an entry stands.
type Place struct {
	File string    `json:"file"`
	Line int64     `json:"line"` // from 1
	Time time.Time `json:"time,omitzero"`
}

// String returns file:line.
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// entry is what we read of an entry of Vault's audit devices.
type entry struct {
	Time  time.Time `json:"time"`
	Type  string    `json:"type"`
	Error string    `json:"error"`
	Auth  struct {
		EntityID string `json:"entity_id"`
	} `json:"auth"`
	Request struct {
		ID            string                     `json:"id"`
		Operation     string                     `json:"operation"`
		Path          string                     `json:"path"`
		MountPoint    string                     `json:"mount_point"`
		MountAccessor string                     `json:"mount_accessor"`
		Data          map[string]json.RawMessage `json:"data"`
	} `json:"request"`
	Response struct {
		Data map[string]json.RawMessage `json:"data"`
	} `json:"response"`

	place Place
}

// Types of entries.
const (
	typeRequest  = "request"
	typeResponse = "response"
)

var (
	eventsKey = []byte(`"` + wire.EventsKey + `"`)
	factsKey  = []byte(`"` + wire.FactsKey + `"`)
)

// speaksOfUs reports whether a line may hold events or facts. Only such lines are
// decoded.
func speaksOfUs(line []byte) bool {
	return bytes.Contains(line, eventsKey) || bytes.Contains(line, factsKey)
}

// decodeEntry reads one line. A device may be set up to write a prefix before it.
func decodeEntry(line []byte) (*entry, error) {
	if at := bytes.IndexByte(line, '{'); at > 0 {
		line = line[at:]
	}
	e := &entry{}
	if err := json.Unmarshal(line, e); err != nil {
		return nil, fmt.Errorf("read audit entry: %w", err)
	}
	return e, nil
}

// texts returns the strings of a list.
func texts(content json.RawMessage) ([]string, bool) {
	var list []string
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, false
	}
	return list, true
}

// textOf returns the string at key, "" when there is none.
func textOf(data map[string]json.RawMessage, key string) string {
	var value string
	if err := json.Unmarshal(data[key], &value); err != nil {
		return ""
	}
	return value
}
