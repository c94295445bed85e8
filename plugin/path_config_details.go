package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// detailKind is the JSON type a connection detail has when read. Terraform's
// provider crashes on any other, so what was written in another form is turned
// into it.
type detailKind int

const (
	detailString detailKind = iota
	detailNumber
	detailFlag
	detailDuration // a string such as "300s"
	detailSecret   // never read back
)

// secret reports whether a detail is never read back.
func (p *product) secret(key string) bool {
	kind, known := p.details[key]
	return known && kind == detailSecret
}

// normalize gives value the type its key has. A nil result unsets the key; keys
// the product does not know are kept as they are.
func (p *product) normalize(key string, value any) (any, error) {
	kind, known := p.details[key]
	if !known || value == nil {
		return value, nil
	}
	if text, ok := value.(string); ok && text == "" && kind != detailString {
		return nil, nil
	}
	switch kind {
	case detailNumber:
		// By way of text, for a JSON number reaches a plugin as float64.
		text, err := detailText(key, value)
		if err != nil {
			return nil, err
		}
		number, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return nil, invalidField(key, "is not a number")
		}
		return int(number), nil
	case detailFlag:
		flag, err := parseutil.ParseBool(value)
		if err != nil {
			return nil, invalidField(key, "is not true or false")
		}
		return flag, nil
	case detailDuration:
		text, err := detailText(key, value)
		if err != nil {
			return nil, err
		}
		if _, err := strconv.ParseInt(text, 10, 64); err == nil {
			text += "s"
		}
		if d, err := time.ParseDuration(text); err != nil || d < 0 {
			return nil, invalidField(key, "is not a duration such as 300s")
		}
		return text, nil
	default:
		return detailText(key, value)
	}
}

// detailText reads a string; numbers and flags are taken for their text.
func detailText(key string, value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case bool, int, int64:
		return fmt.Sprint(v), nil
	case nil:
		return "", nil
	default:
		return "", invalidField(key, "is not a string")
	}
}

// refuseNearMiss refuses a key that nobody knows but that looks like a known one:
// taken as it is, "passwrod" would be stored in clear and do nothing.
func (p *product) refuseNearMiss(key string, schema map[string]*framework.FieldSchema) error {
	if _, known := p.details[key]; known {
		return nil
	}
	names := make([]string, 0, len(p.details)+len(schema))
	for name := range p.details {
		names = append(names, name)
	}
	for name := range schema {
		names = append(names, name)
	}
	slices.Sort(names)
	plain := func(name string) string { return strings.ReplaceAll(strings.ToLower(name), "-", "_") }
	for _, name := range names {
		allowed := 2
		if len(name) < 8 {
			allowed = 1
		}
		if levenshtein.Distance(plain(key), name, nil) <= allowed {
			return invalidField(key, "unknown field %q; did you mean %q?", key, name)
		}
	}
	return nil
}

// detail returns a detail that is a string, "" when it is not set.
func (s storedConnection) detail(key string) string {
	text, _ := s.Details[key].(string)
	return text
}

func (s storedConnection) flag(key string) bool {
	value, _ := s.Details[key].(bool)
	return value
}

func (s storedConnection) number(key string) int {
	value, _ := s.Details[key].(int)
	return value
}

// duration is 0 when the detail is not set.
func (s storedConnection) duration(key string) (time.Duration, error) {
	text := s.detail(key)
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, invalidField(key, "is not a duration")
	}
	return d, nil
}

func (s storedConnection) secret(key string) wire.Secret { return wire.NewSecret(s.Secrets[key]) }

// unlimitedSessions stands for a negative max_open_connections.
const unlimitedSessions = 256

// maxSessions is how many sessions a driver may open; 0 is the driver's default.
func (s storedConnection) maxSessions() int {
	if sessions := s.number("max_open_connections"); sessions >= 0 {
		return sessions
	}
	return unlimitedSessions
}

// refuseFlags refuses details of Vault's engine that would lead nowhere here.
func (s storedConnection) refuseFlags(keys ...string) error {
	for _, key := range keys {
		if s.flag(key) {
			return invalidField(key, "is not supported")
		}
	}
	return nil
}
